"""What requests make of a customer's entry. No I/O."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from schemas.admin_customers import CreateCustomerRequest, CustomerPatch, QuotaPatch, RatesPatch
from schemas.hosts import Customer, CustomerStatus, Resources
from schemas.limits import ApiRates, Rate
from schemas.vms import Timestamp

_RESOURCES = {
    "vms": "slots", "vcpus": "vcpus", "memory_mib": "memory_mib", "disk_mib": "disk_mib",
}  # fmt: skip
"""Names of a quota as the API has them, and as the entry has them."""


def made(request: CreateCustomerRequest, now: datetime) -> Customer:
    """The entry that a request asks for."""
    blank = _blank(request.customer_id, now)
    return msgspec.structs.replace(
        blank,
        status=CustomerStatus(request.status),
        pool=request.pool,
        price_plan=request.price_plan,
        **_quota(blank, request.quota),
        rates=_rates(blank.rates, request.rates),
    )


def patched(customer: Customer, patch: CustomerPatch) -> Customer:
    """The entry as a patch wants it: the same one if nothing changes."""
    default = _blank(customer.customer_id, customer.created_at)
    changes: dict[str, Any] = {}
    if patch.status is not msgspec.UNSET:
        changes["status"] = CustomerStatus(patch.status)
    if patch.pool is not msgspec.UNSET:
        changes["pool"] = patch.pool or default.pool
    if patch.price_plan is not msgspec.UNSET:
        changes["price_plan"] = patch.price_plan or default.price_plan
    if patch.quota is None:
        changes |= {"quota": default.quota, "max_snapshots": default.max_snapshots}
    elif patch.quota is not msgspec.UNSET:
        changes |= _quota(customer, patch.quota)
    if patch.rates is None:
        changes["rates"] = default.rates
    elif patch.rates is not msgspec.UNSET:
        changes["rates"] = _rates(customer.rates, patch.rates)
    wanted = msgspec.structs.replace(customer, **changes)
    if wanted == customer:
        return customer
    return msgspec.structs.replace(wanted, generation=customer.generation + 1)


def _blank(customer_id: str, created_at: Timestamp) -> Customer:
    return Customer(customer_id=customer_id, created_at=created_at)


def _quota(customer: Customer, patch: QuotaPatch) -> dict[str, Any]:
    default = _blank(customer.customer_id, customer.created_at)
    amounts: dict[str, int] = {}
    for name, ours in _RESOURCES.items():
        wanted = getattr(patch, name)
        if wanted is msgspec.UNSET:
            amounts[ours] = getattr(customer.quota, ours)
        else:
            amounts[ours] = getattr(default.quota, ours) if wanted is None else wanted
    snapshots = patch.snapshots
    if snapshots is msgspec.UNSET:
        snapshots = customer.max_snapshots
    return {
        "quota": Resources(**amounts),
        "max_snapshots": default.max_snapshots if snapshots is None else snapshots,
    }


def _rates(rates: ApiRates, patch: RatesPatch) -> ApiRates:
    own: dict[str, Rate | None] = {}
    for name in ApiRates.__struct_fields__:
        wanted = getattr(patch, name)
        if wanted is msgspec.UNSET:
            own[name] = getattr(rates, name)
        else:
            own[name] = None if wanted is None else Rate(per_s=wanted.per_s, burst=wanted.burst)
    return ApiRates(**own)
