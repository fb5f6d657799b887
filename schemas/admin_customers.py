"""Bodies of `/v1/admin/customers`: customers as their operator sees them."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from schemas.hosts import Amount, CustomerStatus
from schemas.ids import CustomerId, PoolId, PricePlanId
from schemas.limits import ApiRates, Rate
from schemas.quotas import QuotaAmounts
from schemas.vms import Timestamp

MAX_CUSTOMER_PAGE = 1000

GivenStatus = Literal["active", "suspended"]
"""What can be asked for; a customer is closed on a path of its own."""

_Given = Amount | msgspec.UnsetType | None


class QuotaPatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits to set; `null` is the default of all customers, and what is not named stays.

    Attributes:
        vms: How many VMs there may be.
        snapshots: How many snapshots may be kept.
    """

    vms: _Given = msgspec.UNSET
    vcpus: _Given = msgspec.UNSET
    memory_mib: _Given = msgspec.UNSET
    disk_mib: _Given = msgspec.UNSET
    snapshots: _Given = msgspec.UNSET


class RateRequest(Rate, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`Rate` in a request."""


class RatesPatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The customer's own rates; `null` is the gateways' default, and what is not named stays."""

    reads: RateRequest | msgspec.UnsetType | None = msgspec.UNSET
    mutations: RateRequest | msgspec.UnsetType | None = msgspec.UNSET
    expensive: RateRequest | msgspec.UnsetType | None = msgspec.UNSET


class CreateCustomerRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /v1/admin/customers`."""

    customer_id: CustomerId
    status: GivenStatus = "active"
    pool: PoolId = "default"
    price_plan: PricePlanId = "default"
    quota: QuotaPatch = QuotaPatch()
    rates: RatesPatch = RatesPatch()


class CustomerPatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `PATCH /v1/admin/customers/{customer_id}`: a JSON merge patch (RFC 7396).

    What is not named stays as it is; `null` is the default.
    """

    status: GivenStatus | msgspec.UnsetType = msgspec.UNSET
    pool: PoolId | msgspec.UnsetType | None = msgspec.UNSET
    price_plan: PricePlanId | msgspec.UnsetType | None = msgspec.UNSET
    quota: QuotaPatch | msgspec.UnsetType | None = msgspec.UNSET
    rates: RatesPatch | msgspec.UnsetType | None = msgspec.UNSET


class CustomerView(msgspec.Struct, frozen=True, kw_only=True):
    """A customer.

    Attributes:
        status: A customer that is suspended or closed may look, stop and delete, nothing else.
        pool: Where new VMs go; those that are there stay.
        price_plan: Of new VMs; those that are there keep the one that they were made under.
        quota: What all VMs may take together, and how many VMs and snapshots there may be.
        rates: The customer's own; null where the gateways' default holds.
        generation: Grows by one with each change; the `ETag`.
    """

    customer_id: CustomerId
    status: CustomerStatus
    pool: PoolId
    price_plan: PricePlanId
    quota: QuotaAmounts
    rates: ApiRates
    created_at: Timestamp
    generation: Annotated[int, msgspec.Meta(ge=1)]


class CustomerDetails(CustomerView, frozen=True, kw_only=True):
    """A customer, and what is used of the quota.

    Attributes:
        used: What is there and what is being made, taken together.
    """

    used: QuotaAmounts


class CustomerList(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `GET /v1/admin/customers`, by name; `next_cursor` is empty on the last page.

    A page can be shorter than asked for, even empty, and not the last: the search for what a
    filter wants is cut into pieces.
    """

    customers: tuple[CustomerView, ...]
    next_cursor: str = ""
