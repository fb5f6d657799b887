"""Dropped packets: told to owners, counted for operators, and when they are abuse."""

from __future__ import annotations

import asyncio
from ipaddress import IPv6Network
from pathlib import Path
from uuid import UUID

import pytest

from schemas.events import NetworkAbuseSuspected
from schemas.ids import new_id
from schemas.units import NS_PER_S
from tests.support.memory_agent import InlineExecutor, Run
from tests.support.memory_host import MemoryDesk
from tests.support.whole_agent import Rig, whole_agent
from vm_agent.dropping import MANY, QUIET_S, WINDOW_S, Dropping, Suspicion
from vm_agent.network.leases import Leases, Ranges
from vm_agent.network.numbers import Numbers
from vm_agent.telemetry import Telemetry


def test_many_suspicious_packets_in_a_minute_are_abuse_once_an_hour() -> None:
    """However they are spread over the minute; ordinary ones are none."""
    suspicion = Suspicion()
    vm_id = new_id()
    assert suspicion.see(vm_id, {"mld": 10 * MANY}, 0) is None
    assert suspicion.see(vm_id, {"source": MANY // 2}, 1) is None
    assert suspicion.see(vm_id, {"ra_guard": MANY // 2}, 30) == {
        "source": MANY // 2,
        "ra_guard": MANY // 2,
    }
    assert suspicion.see(vm_id, {"source": 9 * MANY}, 31) is None
    assert suspicion.see(vm_id, {"source": MANY}, 30 + QUIET_S) == {"source": MANY}
    assert suspicion.see(new_id(), {"source": MANY - 1}, 0) is None


def test_what_is_longer_ago_than_the_window_counts_no_more() -> None:
    """And who is gone is forgotten."""
    suspicion = Suspicion()
    vm_id = new_id()
    for at in range(5):
        assert suspicion.see(vm_id, {"source": MANY // 2}, at * (WINDOW_S + 1)) is None
    suspicion.see(vm_id, {"source": MANY - 1}, 1000)
    suspicion.keep([])
    assert suspicion.see(vm_id, {"source": 1}, 1001) is None


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """An agent in memory that connects its VMs."""
    made = Rig(tmp_path)
    made.kernel.leases = Leases(
        Ranges(IPv6Network("2001:db8::/64")), Numbers(tmp_path / "numbers.json")
    )
    return made


async def test_an_owner_sees_what_is_dropped_and_is_told_of_abuse(rig: Rig) -> None:
    """In the status within the time it is shown in, in an event at once."""
    async with whole_agent(rig):
        vm_id = await rig.running_vm()
        (tap,) = rig.kernel.attached
        await rig.until(lambda: rig.desk.statuses)
        assert rig.desk.statuses[-1].addresses
        assert rig.beats[-1].networks == ("2001:db8::/64",)
    desk = MemoryDesk()
    asyncio.get_running_loop().set_default_executor(InlineExecutor(1))
    run = Run(rig.folder, rig.kernel, desk)
    await run.start()
    await run.quiet()
    try:
        await check_dropping(run, desk, tap, vm_id)
    finally:
        await run.die()


async def check_dropping(run: Run, desk: MemoryDesk, tap: str, vm_id: UUID) -> None:
    """What is told of the counts that come in."""
    dropping = Dropping(run.fleet, Telemetry())
    now_ns = 100 * NS_PER_S
    await dropping.take({tap: {"source": 5, "host_chatter": 9}}, now_ns)
    await dropping.take({tap: {"source": 7, "host_chatter": 99}}, now_ns + NS_PER_S)
    await run.quiet()
    assert desk.statuses[-1].dropped == {}
    await dropping.take({tap: {"source": 8}}, now_ns + 61 * NS_PER_S)
    await run.quiet()
    assert desk.statuses[-1].dropped == {"source": 3}
    await dropping.take({tap: {"source": MANY + 8}}, now_ns + 62 * NS_PER_S)
    await run.quiet()
    (event,) = [e for e in desk.events.values() if isinstance(e, NetworkAbuseSuspected)]
    assert (event.vm_id, event.reason) == (vm_id, "source")
    assert event.dropped == {"source": MANY + 1}
    assert event.window_s == WINDOW_S
    assert desk.statuses[-1].dropped == {"source": MANY + 3}
    await dropping.take({tap: {"source": 4}}, now_ns + 63 * NS_PER_S)
    await run.quiet()


async def test_who_is_to_be_cut_off_is_cut_off_and_stays_so(rig: Rig) -> None:
    """By an order on the bus; over a restart that does not hear of orders; until it is released."""
    async with whole_agent(rig):
        vm_id = await rig.running_vm()
        rig.orders.give(draining=False, quarantined=(vm_id,))
        await rig.until(lambda: all(vm.quarantined for vm in rig.kernel.attached.values()))
        await rig.until(lambda: rig.desk.statuses[-1].quarantined)
    rig.orders.heard.clear()
    rig.desk.statuses.clear()
    assert rig.kernel.attached
    rig.stop.clear()
    async with asyncio.TaskGroup() as group:
        group.create_task(rig.run(), name="agent")
        await asyncio.sleep(0)
        await rig.until(lambda: vm_id in {s.vm_id for s in rig.desk.statuses})
        assert all(vm.quarantined for vm in rig.kernel.attached.values())
        rig.orders.give(draining=False)
        rig.orders.heard.set()
        await rig.until(lambda: not any(vm.quarantined for vm in rig.kernel.attached.values()))
        await rig.until(lambda: not rig.desk.statuses[-1].quarantined)
        rig.stop.set()
