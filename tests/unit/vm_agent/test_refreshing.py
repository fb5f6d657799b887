"""Device counters: each VMM in turn, none too often, and never older than it is said."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.ids import new_id
from schemas.units import NS_PER_MS
from schemas.vms import VmState
from tests.support.memory_host import MemoryDriver
from tests.support.memory_kernel import MemoryKernel
from vm_agent.consoles import Consoles
from vm_agent.drivers.abc import DeviceCounters, UnreachableError, Vmm
from vm_agent.fleet import Live
from vm_agent.metering import GoneSources, VmMeter
from vm_agent.refreshing import Refreshing
from vm_agent.telemetry import Telemetry
from vm_agent.ticks import PERIOD_NS, refresh_period_ms


class HandClock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now_ns = 10**15

    def wall_ns(self) -> int:
        return self.now_ns

    def monotonic_ns(self) -> int:
        return self.now_ns

    async def sleep_until(self, monotonic_ns: int) -> None:
        raise AssertionError("nobody sleeps here")


class AskedDriver(MemoryDriver):
    """Notes when each VMM was asked; what it answers is that moment."""

    def __init__(self, clock: HandClock) -> None:
        super().__init__(MemoryKernel())
        self.clock = clock
        self.asked: dict[UUID, list[int]] = {}
        self.silent: set[UUID] = set()
        self.tidied = 0

    async def counters(self, vmm: Vmm) -> DeviceCounters:
        self.asked.setdefault(vmm.vm_id, []).append(self.clock.now_ns)
        await self._verb("counters")
        if vmm.vm_id in self.silent:
            raise UnreachableError("told so")
        return DeviceCounters(disk_read_bytes=self.clock.now_ns, disk_write_bytes=0)

    def tidy(self, vmm: Vmm) -> None:
        self.tidied += 1


class Rig:
    """VMMs that are asked, tick by tick."""

    def __init__(self) -> None:
        self.clock = HandClock()
        self.driver = AskedDriver(self.clock)
        self.tasks: set[asyncio.Task[None]] = set()
        self.refreshing = Refreshing(
            self.clock,
            Consoles(lambda vm_id: Path(f"/nonexistent/{vm_id}.log")),
            Telemetry(),
            self._spawn,
        )
        self.lives: list[Live] = []

    def add(self, count: int) -> None:
        for _ in range(count):
            vmm = Vmm(
                vm_id=new_id(), incarnation=1, driver="memory", pid=1, start_ticks=1,
                run_dir="/nonexistent",
            )  # fmt: skip
            meter = VmMeter(
                vmm.vm_id, 1, memory_mib=1, started_ns=0, sources=GoneSources(),
                state=VmState.RUNNING,
            )  # fmt: skip
            live = Live(vmm, self.driver, meter)
            self.lives.append(live)
            self.refreshing.add(live)

    async def remove(self, count: int) -> None:
        for live in self.lives[:count]:
            await self.refreshing.ended(live)
        del self.lives[:count]

    async def tick(self) -> None:
        """A period later: everybody whose turn it is is asked, and answers."""
        self.clock.now_ns += PERIOD_NS
        self.refreshing.go_on()
        await self.answers()

    async def answers(self, *, but: int = 0) -> None:
        """Until all but so many that hang have answered."""
        while len(self.tasks) > but:
            await asyncio.sleep(0)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["add", "remove", "tick"]), st.integers(1, 60)), max_size=12)
)
def test_no_reading_is_older_than_the_frame_says(script: list[tuple[str, int]]) -> None:
    """However VMs come and go, at each tick; and it says no more than it must."""

    async def play() -> None:
        rig = Rig()
        for what, n in [*script, ("tick", 12)]:
            match what:
                case "add":
                    rig.add(n)
                    await rig.answers()
                case "remove":
                    await rig.remove(n)
                case _:
                    for _ in range(n):
                        await rig.tick()
                        said_ns = rig.refreshing.period_ms * NS_PER_MS
                        for live in rig.lives:
                            assert rig.clock.now_ns - live.meter.device.disk_read_bytes <= said_ns
        assert rig.refreshing.period_ms == refresh_period_ms(len(rig.lives))

    asyncio.run(play())


async def test_vms_that_start_together_are_not_asked_together() -> None:
    """A thousand of them: a hundred each tick, and each of them once a second."""
    rig = Rig()
    rig.add(1000)
    await rig.answers()
    rig.driver.asked.clear()
    for tick in range(1, 11):
        await rig.tick()
        assert sum(map(len, rig.driver.asked.values())) == 100 * tick
    assert {len(times) for times in rig.driver.asked.values()} == {1}
    assert len(rig.driver.asked) == 1000


async def test_a_vmm_that_has_not_answered_yet_is_not_asked_again() -> None:
    """Nor does it keep the others from being asked."""
    rig = Rig()
    rig.driver.hangs = {"counters"}
    rig.add(1)
    while not rig.driver.hanging:
        await asyncio.sleep(0)
    rig.driver.hangs = set()
    rig.add(1)
    hung, other = (live.vmm.vm_id for live in rig.lives)
    await rig.answers(but=1)
    for _ in range(5):
        rig.clock.now_ns += PERIOD_NS
        rig.refreshing.go_on()
        await rig.answers(but=1)
    assert (len(rig.driver.asked[hung]), len(rig.driver.asked[other])) == (1, 6)
    rig.driver.release.set()
    await rig.answers()
    await rig.tick()
    assert len(rig.driver.asked[hung]) == 2


async def test_a_vmm_that_fails_is_asked_once_a_second_and_counts_as_silent() -> None:
    """Until it answers again."""
    rig = Rig()
    rig.add(1)
    (live,) = rig.lives
    await rig.answers()
    rig.driver.silent = {live.vmm.vm_id}
    await rig.tick()
    since_ns = rig.clock.now_ns
    asked = len(rig.driver.asked[live.vmm.vm_id])
    for _ in range(30):
        await rig.tick()
    assert len(rig.driver.asked[live.vmm.vm_id]) == asked + 3
    assert live.silent_since_ns == since_ns
    rig.driver.silent = set()
    for _ in range(10):
        await rig.tick()
    assert live.silent_since_ns is None


async def test_one_that_has_ended_is_asked_no_more_once_it_is_said_so() -> None:
    """Whoever says so waits for a question that is still open."""
    rig = Rig()
    rig.driver.hangs = {"counters"}
    rig.add(1)
    while not rig.driver.hanging:
        await asyncio.sleep(0)
    ending = asyncio.create_task(rig.refreshing.ended(rig.lives[0]), name="ending")
    for _ in range(5):
        await asyncio.sleep(0)
    assert not ending.done()
    rig.driver.release.set()
    await ending
    await rig.answers()
    await rig.tick()
    assert len(rig.driver.asked[rig.lives[0].vmm.vm_id]) == 1


async def test_what_a_vmm_writes_is_kept_short_once_a_second() -> None:
    """Also of one that does not answer: it may be writing without end."""
    rig = Rig()
    rig.add(1)
    await rig.answers()
    rig.driver.silent = {live.vmm.vm_id for live in rig.lives}
    await rig.tick()
    before = rig.driver.tidied
    for _ in range(50):
        await rig.tick()
    assert rig.driver.tidied == before + 5
