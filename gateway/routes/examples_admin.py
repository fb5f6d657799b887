"""Examples of what operators ask for and get; see `examples`."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from gateway.bodies import MERGE_PATCH
from gateway.routes.examples import show
from schemas.admin_customers import (
    CreateCustomerRequest,
    CustomerDetails,
    CustomerList,
    CustomerPatch,
    CustomerView,
    QuotaPatch,
    RateRequest,
    RatesPatch,
)
from schemas.hosts import CustomerStatus
from schemas.limits import ApiRates, Rate
from schemas.quotas import QuotaAmounts

_AT = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
_CUSTOMER = CustomerView(
    customer_id="acme",
    status=CustomerStatus.ACTIVE,
    pool="default",
    price_plan="standard",
    quota=QuotaAmounts(vms=20, vcpus=64, memory_mib=131_072, disk_mib=1_048_576, snapshots=100),
    rates=ApiRates(mutations=Rate(per_s=5.0, burst=20)),
    created_at=_AT,
    generation=2,
)
_DETAILS = CustomerDetails(
    **msgspec.structs.asdict(_CUSTOMER),
    used=QuotaAmounts(vms=3, vcpus=6, memory_mib=1536, disk_mib=3072, snapshots=1),
)

customer = show(_DETAILS)
customer_list = show(CustomerList(customers=(_CUSTOMER,)))
new_customer = show(
    _DETAILS,
    CreateCustomerRequest(
        customer_id="acme",
        price_plan="standard",
        quota=QuotaPatch(vms=20),
        rates=RatesPatch(mutations=RateRequest(per_s=5.0, burst=20)),
    ),
)
customer_patch = show(
    _DETAILS,
    CustomerPatch(status="suspended", quota=QuotaPatch(vms=20, snapshots=None)),
    MERGE_PATCH,
    "application/json",
)
