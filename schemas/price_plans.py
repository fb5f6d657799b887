"""Price plans: values of the bucket `price_plans`, and bodies of `/v1/admin/price-plans`.

A price is a decimal number, written as text, for a stated unit of one meter; no float is near it.
Versions are only ever added: what was valid at an instant stays what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import msgspec

from schemas.admin_hosts import LINE_CHARACTER
from schemas.codec import decoder
from schemas.ids import PricePlanId
from schemas.units import NS_PER_S
from schemas.vms import Timestamp

MAX_VERSIONS = 200
MAX_PLAN_PAGE = 1000

DEFAULT_PLAN = "default"
"""May always be named: customers without another one have it, whether it has prices or not."""

Price = Annotated[
    str,
    msgspec.Meta(pattern=r"^(0|[1-9][0-9]{0,8})(\.[0-9]{1,12})?$(?!\n)", max_length=22),
]
"""A decimal number that is not negative, such as `0.0042`."""

Currency = Annotated[str, msgspec.Meta(pattern=r"^[A-Z]{3}$(?!\n)")]
"""As in ISO 4217: `EUR`."""

PlanName = Annotated[str, msgspec.Meta(max_length=100, pattern=rf"^{LINE_CHARACTER}*$(?!\n)")]

_HOUR_MS = 3_600_000
_GIB_KIB = 1024 * 1024

UNITS: Mapping[str, int] = {
    "hour": _HOUR_MS,
    "minute": 60_000,
    "second": 1000,
    "vcpu_hour": 3600 * NS_PER_S,
    "vcpu_second": NS_PER_S,
    "gib_hour": _GIB_KIB * _HOUR_MS,
    "gib_second": _GIB_KIB * 1000,
    "mib_hour": 1024 * _HOUR_MS,
    "gb": 10**9,
    "gib": 2**30,
    "tb": 10**12,
    "tib": 2**40,
}
"""How much of its meter's own unit each of the units that prices are stated for is."""


class TimePrice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A price of time in which a VMM runs."""

    price: Price
    per: Literal["hour", "minute", "second"] = "hour"


class CpuPrice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A price of time that vCPUs have worked."""

    price: Price
    per: Literal["vcpu_hour", "vcpu_second"] = "vcpu_hour"


class MemoryPrice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A price of memory, over time."""

    price: Price
    per: Literal["gib_hour", "gib_second", "mib_hour"] = "gib_hour"


class BytesPrice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A price of bytes: of 10^9 (`gb`), 2^30 (`gib`), 10^12 (`tb`), 2^40 (`tib`)."""

    price: Price
    per: Literal["gb", "gib", "tb", "tib"] = "gb"


class Prices(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Prices by meter; what has none costs nothing."""

    uptime_ms: TimePrice | None = None
    cpu_ns: CpuPrice | None = None
    mem_kib_ms: MemoryPrice | None = None
    disk_read_bytes: BytesPrice | None = None
    disk_write_bytes: BytesPrice | None = None
    net_rx_bytes: BytesPrice | None = None
    net_tx_bytes: BytesPrice | None = None


class PriceVersion(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan says from an instant on, up to that of the next version.

    Attributes:
        version: Counts from 1.
        created_by: Who says to have entered it.
    """

    version: Annotated[int, msgspec.Meta(ge=1)]
    valid_from: Timestamp
    prices: Prices
    created_at: Timestamp
    created_by: Annotated[str, msgspec.Meta(max_length=255)]


class PricePlan(msgspec.Struct, frozen=True, kw_only=True):
    """Value of bucket `price_plans`, written by the operator.

    Attributes:
        versions: Each is valid from a later instant than the one before.
    """

    plan_id: PricePlanId
    name: PlanName = ""
    currency: Currency
    versions: Annotated[tuple[PriceVersion, ...], msgspec.Meta(min_length=1)]
    created_at: Timestamp

    def __post_init__(self) -> None:
        for before, after in zip(self.versions, self.versions[1:], strict=False):
            if after.valid_from <= before.valid_from or after.version != before.version + 1:
                raise ValueError("versions of a price plan go back")

    def at(self, instant: Timestamp) -> PriceVersion | None:
        """The version that is valid then."""
        valid = [one for one in self.versions if one.valid_from <= instant]
        return valid[-1] if valid else None


class PriceVersionRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /v1/admin/price-plans/{plan_id}/versions`.

    Attributes:
        valid_from: A whole hour, not in the past, and later than that of the version before.
    """

    valid_from: Timestamp
    prices: Prices


class CreatePricePlanRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /v1/admin/price-plans`.

    Attributes:
        name: For people.
        valid_from: Of the first version: a whole hour; may be in the past.
    """

    plan_id: PricePlanId
    name: PlanName = ""
    currency: Currency
    valid_from: Timestamp
    prices: Prices


class PricePlanView(msgspec.Struct, frozen=True, kw_only=True):
    """A price plan.

    Attributes:
        current: What is valid now; null before the first version is.
        next: What comes after that; null if nothing is to come.
        generation: The number of versions; the `ETag`.
    """

    plan_id: PricePlanId
    name: str
    currency: Currency
    created_at: Timestamp
    current: PriceVersion | None = None
    next: PriceVersion | None = None
    generation: Annotated[int, msgspec.Meta(ge=1)]


class PricePlanDetails(PricePlanView, frozen=True, kw_only=True):
    """A price plan with all its versions, the oldest first."""

    versions: tuple[PriceVersion, ...]


class PricePlanList(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `GET /v1/admin/price-plans`, by id; `next_cursor` is empty on the last page."""

    price_plans: tuple[PricePlanView, ...]
    next_cursor: str = ""


decode_price_plan: Callable[[bytes], PricePlan] = decoder(PricePlan)
