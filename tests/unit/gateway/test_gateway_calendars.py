"""Where windows begin in time zones whose clocks jump."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.calendars import UnknownZoneError, at, edges, midnight, zone_of
from schemas.usage_windows import WindowUnit

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
HOUR = 3_600_000
ZONES = (
    "UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe",
    "America/Sao_Paulo", "Asia/Beirut", "Pacific/Apia", "Africa/Casablanca", "America/Havana",
)  # fmt: skip


def ms(text: str) -> int:
    return (datetime.fromisoformat(text) - EPOCH) // timedelta(milliseconds=1)


def lengths(start: str, end: str, unit: WindowUnit, zone: str) -> list[float]:
    """Of windows, in hours."""
    found = edges(ms(start), ms(end), unit, zone_of(zone), 1000)
    return [(b - a) / HOUR for a, b in pairwise(found)]


@pytest.mark.parametrize(
    ("zone", "start", "end", "expected"),
    [
        ("Europe/Berlin", "2026-03-28T00:00+01:00", "2026-03-31T00:00+02:00", [24, 23, 24]),
        ("Europe/Berlin", "2026-10-24T00:00+02:00", "2026-10-27T00:00+01:00", [24, 25, 24]),
        ("Europe/Berlin", "2026-10-24T12:00+02:00", "2026-10-26T12:00+01:00", [12, 25, 12]),
        ("Australia/Lord_Howe", "2026-04-04T00:00+11:00", "2026-04-06T00:00+10:30", [24, 24.5]),
        # Midnight is skipped: the day begins at one o'clock.
        ("America/Sao_Paulo", "2018-11-03T00:00-03:00", "2018-11-05T00:00-02:00", [24, 23]),
        # A day that never was.
        ("Pacific/Apia", "2011-12-29T00:00-10:00", "2012-01-01T00:00+14:00", [24, 24]),
    ],
)
def test_days_have_as_many_hours_as_they_have(
    zone: str, start: str, end: str, expected: list[float]
) -> None:
    """23 and 25 among them."""
    assert lengths(start, end, WindowUnit.DAY, zone) == expected


def test_hours_follow_the_clock_on_the_wall() -> None:
    """Offsets of half hours, and clocks that jump by half an hour."""
    assert lengths(
        "2026-01-01T00:00+00:00", "2026-01-01T02:00+00:00", WindowUnit.HOUR, "Asia/Kolkata"
    ) == [0.5, 1, 0.5]
    night = lengths(
        "2026-04-05T00:00+11:00", "2026-04-05T04:00+10:30", WindowUnit.HOUR, "Australia/Lord_Howe"
    )
    assert night == [1, 1, 0.5, 1, 1]
    assert (
        lengths(
            "2026-10-25T00:00+02:00", "2026-10-26T00:00+01:00", WindowUnit.HOUR, "Europe/Berlin"
        )
        == [1] * 25
    )


@given(
    st.sampled_from(ZONES),
    st.sampled_from(list(WindowUnit)),
    st.integers(0, 2_500_000_000_000),
    st.integers(1, 40 * 24 * HOUR),
)
def test_windows_follow_one_another_and_begin_where_the_clock_says(
    name: str, unit: WindowUnit, start: int, length: int
) -> None:
    """From the start to the end, none of them empty or too long, in any zone."""
    zone = zone_of(name)
    found = edges(start, start + length, unit, zone, 50)
    assert found[0] == start
    assert len(found) <= 51
    assert found[-1] == start + length or len(found) == 51
    longest = {WindowUnit.MINUTE: 60_000, WindowUnit.HOUR: HOUR, WindowUnit.DAY: 49 * HOUR}[unit]
    for begin, end in pairwise(found):
        assert 0 < end - begin <= longest
    for edge in found[1:-1]:
        before, here = at(edge - 1, zone), at(edge, zone)
        assert here.second == here.microsecond == 0
        if unit is WindowUnit.DAY:
            assert before.date() != here.date()
        elif unit is WindowUnit.HOUR:
            assert here.minute == 0 or before.utcoffset() != here.utcoffset()


@pytest.mark.parametrize(
    "name", ["", "Mars/Olympus", "../etc/passwd", "/etc/passwd", "Europe", "\0"]
)
def test_other_names_are_no_zones(name: str) -> None:
    """Files elsewhere least of all."""
    with pytest.raises(UnknownZoneError):
        zone_of(name)


def test_midnight_is_the_first_moment_of_the_day() -> None:
    """Also where there is none."""
    assert midnight(date(2018, 11, 4), zone_of("America/Sao_Paulo")).hour == 1
    assert midnight(date(2026, 3, 29), zone_of("Europe/Berlin")).isoformat().endswith("+01:00")
