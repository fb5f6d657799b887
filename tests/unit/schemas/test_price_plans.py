"""Price plans: units of meters, versions in order, what is valid when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, get_args, get_type_hints

import msgspec
import pytest

from schemas.codec import encode
from schemas.errors import MalformedMessageError
from schemas.price_plans import (
    UNITS,
    BytesPrice,
    CpuPrice,
    MemoryPrice,
    PricePlan,
    Prices,
    PriceVersion,
    TimePrice,
    decode_price_plan,
)
from schemas.vms import METERS

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def version(number: int, hours: int) -> PriceVersion:
    return PriceVersion(
        version=number,
        valid_from=NOW + timedelta(hours=hours),
        prices=Prices(),
        created_at=NOW,
        created_by="ann",
    )


def plan(*versions: PriceVersion) -> PricePlan:
    return PricePlan(plan_id="p", currency="EUR", versions=versions, created_at=NOW)


def test_every_meter_can_have_a_price() -> None:
    """And no other."""
    assert set(Prices.__struct_fields__) == set(METERS)


def test_every_unit_has_its_size() -> None:
    """Of the meters' own units, as whole numbers."""
    hints: list[Any] = [
        get_type_hints(kind)["per"] for kind in (TimePrice, CpuPrice, MemoryPrice, BytesPrice)
    ]
    assert {unit for hint in hints for unit in get_args(hint)} == set(UNITS)
    assert UNITS["hour"] == 60 * UNITS["minute"] == 3600 * UNITS["second"]
    assert UNITS["gib_hour"] == 1024 * UNITS["mib_hour"] == 3600 * UNITS["gib_second"]
    assert UNITS["vcpu_hour"] == 3600 * UNITS["vcpu_second"]
    assert UNITS["tib"] == 1024 * UNITS["gib"]


def test_the_last_version_that_has_begun_is_valid() -> None:
    """From its instant on; nothing is before the first."""
    found = plan(version(1, 0), version(2, 5), version(3, 6))
    hours = (-1, 0, 4, 5, 6, 900)
    valid = [found.at(NOW + timedelta(hours=h)) for h in hours]
    assert [one.version if one else None for one in valid] == [None, 1, 1, 2, 3, 3]
    assert decode_price_plan(encode(found)) == found


@pytest.mark.parametrize(
    "versions", [(), (version(1, 1), version(2, 1)), (version(1, 1), version(3, 2))]
)
def test_a_damaged_plan_is_none(versions: tuple[PriceVersion, ...]) -> None:
    """Without a version, or with versions that do not go on."""
    good = msgspec.to_builtins(plan(version(1, 0)))
    damaged = msgspec.json.encode({**good, "versions": msgspec.to_builtins(versions)})
    with pytest.raises(MalformedMessageError):
        decode_price_plan(damaged)
