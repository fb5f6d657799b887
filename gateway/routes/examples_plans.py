"""Examples of price plans; see `examples`."""

from __future__ import annotations

from datetime import UTC, datetime

from gateway.routes.examples import show
from schemas.price_plans import (
    BytesPrice,
    CpuPrice,
    CreatePricePlanRequest,
    MemoryPrice,
    PricePlanDetails,
    PricePlanList,
    PricePlanView,
    Prices,
    PriceVersion,
    PriceVersionRequest,
    TimePrice,
)

_JANUARY, _MARCH = datetime(2026, 1, 1, tzinfo=UTC), datetime(2126, 3, 1, tzinfo=UTC)
_PRICES = Prices(
    uptime_ms=TimePrice(price="0.0042"),
    cpu_ns=CpuPrice(price="0.031"),
    mem_kib_ms=MemoryPrice(price="0.0065"),
    net_tx_bytes=BytesPrice(price="0.09", per="gib"),
)
_LOWER = Prices(cpu_ns=CpuPrice(price="0.03"), mem_kib_ms=MemoryPrice(price="0.006"))
_FIRST = PriceVersion(
    version=1, valid_from=_JANUARY, prices=_PRICES, created_at=_JANUARY, created_by="ann"
)
_SECOND = PriceVersion(
    version=2, valid_from=_MARCH, prices=_LOWER, created_at=_JANUARY, created_by="ann"
)
_PLAN = PricePlanView(
    plan_id="standard",
    name="Standard",
    currency="EUR",
    created_at=_JANUARY,
    current=_FIRST,
    next=_SECOND,
    generation=2,
)
_DETAILS = PricePlanDetails(
    **{name: getattr(_PLAN, name) for name in PricePlanView.__struct_fields__},
    versions=(_FIRST, _SECOND),
)

plan = show(_DETAILS)
plan_list = show(PricePlanList(price_plans=(_PLAN,)))
new_plan = show(
    _DETAILS,
    CreatePricePlanRequest(
        plan_id="standard", name="Standard", currency="EUR", valid_from=_JANUARY, prices=_PRICES
    ),
)
new_version = show(_DETAILS, PriceVersionRequest(valid_from=_MARCH, prices=_LOWER))
