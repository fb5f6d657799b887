"""Sharing: everyone comes to the same result, evenly, and little moves when somebody goes."""

from __future__ import annotations

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from collector.crew import units_of
from collector.shares import Members, shares
from schemas.units import NS_PER_S

MEMBERS = st.sets(st.uuids(), min_size=1, max_size=20)
UNITS = st.sets(st.integers(0, 200).map(lambda n: f"collector-{n}"), max_size=120)
ME, OTHER = UUID(int=1), UUID(int=2)


@given(MEMBERS, UNITS)
def test_each_unit_has_one_member_and_all_have_the_same_number(
    members: set[UUID], units: set[str]
) -> None:
    """Nobody has more than one unit more than another."""
    found = shares(members, units)
    assert found.keys() == units
    held = [sum(1 for member in found.values() if member == one) for one in members]
    assert max(held) - min(held) <= 1


@given(MEMBERS, UNITS)
def test_the_order_of_what_is_known_changes_nothing(members: set[UUID], units: set[str]) -> None:
    """Two collectors that know the same come to the same."""
    assert shares(sorted(members), sorted(units)) == shares(
        sorted(members, reverse=True), sorted(units, reverse=True)
    )


def test_nobody_to_share_means_nothing_is_shared() -> None:
    """No member, no result, and no endless loop."""
    assert shares([], ["collector-0"]) == {}


def test_most_units_stay_when_a_member_goes() -> None:
    """With 64 units and 8 members, fewer than half of those of the others move."""
    members = [UUID(int=number * 7919) for number in range(1, 9)]
    units = [f"collector-{number}" for number in range(64)]
    before, after = shares(members, units), shares(members[1:], units)
    others = [unit for unit in units if before[unit] != members[0]]
    assert sum(before[unit] != after[unit] for unit in others) < len(others) / 2


def test_a_member_that_is_not_heard_of_is_gone() -> None:
    """After two seconds, and at once when it says so; the collector itself lives always."""
    members = Members(ME, 2 * NS_PER_S)
    assert members.heard(OTHER, 0)
    assert not members.heard(OTHER, NS_PER_S)
    assert members.living(3 * NS_PER_S - 1) == {ME, OTHER}
    assert members.living(3 * NS_PER_S) == {ME}
    assert members.heard(OTHER, 3 * NS_PER_S)
    assert members.left(OTHER)
    assert not members.left(OTHER)
    assert members.living(3 * NS_PER_S) == {ME}


def test_a_collector_that_stood_still_misses_nobody() -> None:
    """Time in which it could hear nothing does not count against the others."""
    members = Members(ME, 2 * NS_PER_S)
    members.heard(OTHER, 0)
    members.deafened(10 * NS_PER_S)
    assert members.living(11 * NS_PER_S) == {ME, OTHER}


def test_the_units_cover_what_is_stored_now_and_what_was_stored_before() -> None:
    """Without partitions, with them, and with fewer than there were once."""
    assert list(units_of(0)) == ["collector"]
    assert len(units_of(8)) == 9
    assert {"collector", "collector-0", "collector-7"} <= units_of(2, former=8).keys()
    assert units_of(2)["collector-1"].filter_subject == "metrics.raw.1.*"


def test_what_was_stored_before_the_stream_was_parted_is_followed_everywhere() -> None:
    """No unit knows whose frames are left in it."""
    assert {unit.others_until for unit in units_of(8, former=16, until=77).values()} == {77}
    units = units_of(8, former=16, until=77, mixed_until=76)
    assert {unit.mixed_until for unit in units.values()} == {76}


def test_one_unit_alone_tells_of_a_host() -> None:
    """The one that its frames are stored in now."""
    for partitions in (0, 1, 8):
        units = units_of(partitions, former=16)
        telling = [unit for unit in units.values() if unit.tells_of("host-a")]
        assert len(telling) == 1
