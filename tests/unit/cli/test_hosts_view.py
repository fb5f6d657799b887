"""What heartbeat and order say of a host, taken together, and how it is told."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from rich.console import Console

from decisec.cli.host_tables import details_tables, drain_sentence, hosts_table, progress, state_of
from runtime.hosts import Condition, HostView, view
from schemas.hosts import HostInfo, HostOrders, Resources
from schemas.ids import new_id
from schemas.units import KIB

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
ROOM = Resources(vcpus=8, memory_mib=4 * KIB, disk_mib=10 * KIB, slots=10)


def info(*, age_s: float = 0.4, **changes: Any) -> HostInfo:
    heartbeat = HostInfo(
        host_id="h1",
        run_id=new_id(),
        boot_id="b",
        version="1",
        driver="firecracker",
        capacity=ROOM,
        free=ROOM,
        started_at=NOW - timedelta(hours=1),
        heartbeat_at=NOW - timedelta(seconds=age_s),
    )
    return msgspec.structs.replace(heartbeat, **changes)


def order(*, draining: bool, reason: str = "", minutes: int = 0) -> HostOrders:
    at = NOW + timedelta(minutes=minutes)
    return HostOrders(
        host_id="h1", draining=draining, reason=reason, requested_by="ann@desk", ordered_at=at
    )


DRAIN, UNDRAIN = order(draining=True), order(draining=False)


@pytest.mark.parametrize(
    ("heartbeat", "ordered", "state", "words"),
    [
        (info(), None, Condition.UP, "up"),
        (info(), DRAIN, Condition.UP, "up, drain ordered"),
        (info(draining=True, vms=2), DRAIN, Condition.DRAINING, "draining"),
        (info(draining=True, vms=2), UNDRAIN, Condition.DRAINING, "draining, undrain ordered"),
        (info(draining=True), None, Condition.EMPTY, "empty"),
        (info(age_s=5, draining=True), None, Condition.EMPTY, "empty"),
        (info(age_s=12, draining=True), DRAIN, Condition.SILENT, "silent for 12 s, drain ordered"),
        (info(age_s=12), UNDRAIN, Condition.SILENT, "silent for 12 s"),
        (info(age_s=-60), None, Condition.UP, "up"),
        (None, DRAIN, Condition.NOT_HEARD, "not heard, drain ordered"),
    ],
)
def test_the_state_is_what_can_be_expected_of_the_host(
    heartbeat: HostInfo | None, ordered: HostOrders | None, state: Condition, words: str
) -> None:
    """The heartbeat says what is, as long as it is fresh; an order not yet obeyed is named."""
    seen = view("h1", heartbeat, ordered, NOW)
    assert (seen.state, state_of(seen)) == (state, words)
    assert seen.heard is (state not in (Condition.SILENT, Condition.NOT_HEARD))
    assert seen.empty is (state is Condition.EMPTY)
    assert seen.known
    assert seen.age_s is None or seen.age_s >= 0


def test_an_order_to_take_vms_makes_no_host() -> None:
    """So a name that was mistyped does not stay in the list."""
    assert not view("h1", None, UNDRAIN, NOW).known
    assert not view("h1", None, None, NOW).known


def test_an_order_is_obeyed_or_taken_back() -> None:
    """By a heartbeat that can be believed, and by a later order that says the opposite."""
    assert view("h1", info(draining=True), DRAIN, NOW).obeys(DRAIN)
    assert not view("h1", info(), DRAIN, NOW).obeys(DRAIN)
    assert not view("h1", info(age_s=9, draining=True), DRAIN, NOW).obeys(DRAIN)
    assert not view("h1", None, UNDRAIN, NOW).obeys(UNDRAIN)
    later = order(draining=False, minutes=1)
    assert view("h1", None, later, NOW).takes_back(DRAIN)
    assert not view("h1", None, order(draining=True, minutes=1), NOW).takes_back(DRAIN)
    # An old word that a slow server still holds is none.
    assert not view("h1", None, order(draining=False, minutes=-1), NOW).takes_back(DRAIN)


def shown(*tables: Any) -> str:
    paper = io.StringIO()
    console = Console(width=200, file=paper)
    for table in tables:
        console.print(table)
    return paper.getvalue()


def test_tables_tell_what_is_free_and_keep_brackets() -> None:
    """Capacity, what is reserved and what is free; a reason is text, not markup."""
    free = Resources(vcpus=5, memory_mib=KIB, disk_mib=9 * KIB, slots=7)
    held = Resources(vcpus=3, memory_mib=3 * KIB, disk_mib=KIB, slots=3)
    seen = view(
        "h1",
        info(free=free, reserved=held, draining=True, vms=3, drain_reason="new [disks]"),
        order(draining=True, reason="new [disks]"),
        NOW,
    )
    line = shown(hosts_table([seen, view("h9", None, DRAIN, NOW)]))
    for words in ("5 / 8", "1.0 / 4.0 GiB", "9.0 / 10.0 GiB", "7 / 10", "2026-01-01T11:00:00Z"):
        assert words in line
    assert "not heard, drain ordered" in line
    details = shown(*details_tables(seen, []))
    assert "drain, by ann@desk at 2026-01-01T12:00:00Z: new [disks]" in details
    rows = {r.split("│")[1].strip(): r for r in details.splitlines() if r.startswith("│")}
    assert "3.0 GiB" in rows["reserved"]
    assert "1.0 GiB" in rows["free"]
    older = shown(*details_tables(view("h1", info(), None, NOW), []))
    assert "?" in older  # an older agent does not say what is reserved


def test_sentences_say_how_many_vms_are_left_and_what_to_do() -> None:
    """And that an agent which is down obeys later."""

    def seen(heartbeat: HostInfo | None) -> HostView:
        return view("h1", heartbeat, DRAIN, NOW)

    one, two = (seen(info(draining=True, vms=vms)) for vms in (1, 2))
    assert "1 VM is left" in drain_sentence(one)
    assert "2 VMs are left" in drain_sentence(two)
    assert "decisec host get h1" in drain_sentence(two)
    assert progress(two) == "h1: draining, 2 VMs are left"
    assert "is empty" in drain_sentence(seen(info(draining=True)))
    assert "as soon as it runs" in drain_sentence(seen(None))
    assert progress(seen(info(age_s=9))) == "h1: silent, waiting for its agent"
