"""Orders for a host: which one counts, and the word that it is empty."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from runtime.clock import SystemClock, utc_now
from schemas.ids import new_id
from schemas.vms import VmSpec, VmState
from tests.support.memory_agent import InlineExecutor
from tests.support.memory_host import LooseTasks, MemoryDesk, MemoryDriver, memory_host
from tests.support.memory_kernel import MemoryKernel
from tests.support.memory_orders import MemoryOrders
from vm_agent.fleet import Fleet
from vm_agent.orders import BY_SETTINGS, Orders
from vm_agent.settings import AgentSettings
from vm_agent.store import Record, RecordStore

pytestmark = pytest.mark.timeout(20)


class _FastClock(SystemClock):
    """Half a second takes no time.

    Attributes:
        rounds: How often somebody has waited for it.
    """

    def __init__(self) -> None:
        self.rounds = 0

    async def sleep_until(self, monotonic_ns: int) -> None:
        """Let the others work."""
        del monotonic_ns
        self.rounds += 1
        await asyncio.sleep(0)


class Bench:
    """One host's orders, and VMs that need no agent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.book = MemoryOrders()
        self.clock = _FastClock()
        kernel = MemoryKernel()
        self.host = memory_host(kernel, MemoryDriver(kernel), folder)
        store = RecordStore(folder / "vms")
        self.fleet = Fleet("h1", store, MemoryDesk(), LooseTasks().spawn)

    def orders(self, *, draining: bool = False) -> Orders:
        """What an agent has on this host, with a setting of one's own."""
        settings = AgentSettings(host_id="h1", data_dir=str(self.folder), draining=draining)
        return Orders(settings, self.host, self.fleet, self.book, self.book.announce, self.clock)

    @asynccontextmanager
    async def run(self, **settings: Any) -> AsyncIterator[Orders]:
        """One run of them; it is cut short at the end."""
        # A thread would go on writing after the end, as that of a killed agent cannot.
        asyncio.get_running_loop().set_default_executor(InlineExecutor())
        orders = self.orders(**settings)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(orders.run(), name="orders")
            yield orders
            running.cancel()

    def add_vm(self, state: VmState = VmState.STOPPED) -> UUID:
        """A VM that is here."""
        vm_id = new_id()
        spec = VmSpec(image="tiny")
        self.fleet.add(
            Record(vm_id=vm_id, customer_id="acme", spec=spec, state=state, created_at=utc_now())
        )
        return vm_id

    def lose_vm(self, vm_id: UUID) -> None:
        """It is deleted; its record is kept as long as something is left to tell."""
        vm = self.fleet.get(vm_id)
        assert vm is not None
        vm.stage(state=VmState.DELETED)

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for what no event tells."""
        while not condition():
            await asyncio.sleep(0.002)

    async def rest(self) -> None:
        """Let the orders that run come round several times, to do what they should not."""
        enough = self.clock.rounds + 5
        await self.until(lambda: self.clock.rounds >= enough)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.parametrize("setting", [False, True])
async def test_an_order_wins_over_the_setting(bench: Bench, setting: bool) -> None:
    """The setting counts where no order stands, and again once it is taken out."""
    orders = bench.orders(draining=setting)
    by_setting = (setting, BY_SETTINGS if setting else "")
    assert (orders.draining(), orders.drain_reason) == by_setting
    bench.book.give(draining=not setting, reason="as ordered")
    assert orders.draining() is not setting
    assert orders.drain_reason == ("" if setting else "as ordered")
    bench.book.remove()
    assert (orders.draining(), orders.drain_reason) == by_setting


async def test_it_is_known_what_is_ordered_or_the_end_has_come(bench: Bench) -> None:
    """Who waits for the orders is not kept from ending."""
    orders, stop = bench.orders(), asyncio.Event()
    assert await orders.known(stop)
    bench.book.heard.clear()
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(orders.known(stop), name="waiting")
        for _ in range(100):
            await asyncio.sleep(0)
        assert not waiting.done()
        stop.set()
    assert waiting.result() is False


async def test_an_empty_host_says_so_once_and_every_vm_counts(bench: Bench) -> None:
    """A VM that is stopped or has failed is still here; a deleted one is not."""
    vms = [bench.add_vm(state) for state in (VmState.STOPPED, VmState.FAILED, VmState.RUNNING)]
    order = bench.book.give(draining=True, reason="new disks")
    async with bench.run():
        for vm_id in vms:
            await bench.rest()
            assert not bench.book.told
            bench.lose_vm(vm_id)
        await bench.until(lambda: bench.book.told)
        await bench.rest()
    (event,) = bench.book.told
    assert (event.host_id, event.reason) == ("h1", "new disks")
    assert event.ordered_at == order.ordered_at


async def test_the_word_is_not_repeated_by_the_next_run(bench: Bench) -> None:
    """Whether an order or the setting lets the host drain."""
    bench.book.give(draining=True)
    for _ in range(3):
        async with bench.run():
            await bench.until(lambda: bench.book.told)
            await bench.rest()
    assert len(bench.book.told) == 1
    bench.book.remove()
    for _ in range(3):
        async with bench.run(draining=True):
            await bench.until(lambda: len(bench.book.told) == 2)
            await bench.rest()
    assert [event.ordered_at is None for event in bench.book.told] == [False, True]
    assert bench.book.told[1].reason == BY_SETTINGS


async def test_each_order_to_drain_is_answered(bench: Bench) -> None:
    """Also one that came after another while no agent ran; taking it back is no event."""

    async def answered(times: int) -> None:
        await bench.until(lambda: len(bench.book.told) >= times)
        await bench.rest()
        assert len(bench.book.told) == times

    bench.book.give(draining=True)
    async with bench.run():
        await answered(1)
        bench.book.give(draining=False)
        await answered(1)
        assert not list(bench.folder.glob("drained.json"))
        bench.book.give(draining=True)
        await answered(2)
    bench.book.give(draining=False)
    bench.book.give(draining=True, reason="another one")
    async with bench.run():
        await answered(3)
    assert len({event.event_id for event in bench.book.told}) == 3


async def test_a_word_that_could_not_be_sent_is_sent_by_the_next_run(bench: Bench) -> None:
    """With the same id, so that readers know it if it was sent after all."""
    bench.book.give(draining=True)
    bench.book.away = True
    notice = bench.folder / "drained.json"
    async with bench.run():
        await bench.until(notice.exists)
    kept = notice.read_bytes()
    bench.book.away = False
    async with bench.run():
        await bench.until(lambda: bench.book.told)
        await bench.until(lambda: notice.read_bytes() != kept)
    assert str(bench.book.told[0].event_id) in kept.decode()
    assert len(bench.book.told) == 1


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff"])
async def test_a_damaged_notice_does_not_stop_the_agent(bench: Bench, damage: bytes) -> None:
    """The host says again that it is empty."""
    (bench.folder / "drained.json").write_bytes(damage)
    bench.book.give(draining=True)
    async with bench.run():
        await bench.until(lambda: bench.book.told)


async def test_a_notice_that_cannot_be_kept_does_not_stop_the_agent(bench: Bench) -> None:
    """As on a full disk; the word is sent all the same, once."""
    (bench.folder / "drained.tmp").mkdir()
    bench.book.give(draining=True)
    async with bench.run():
        await bench.until(lambda: bench.book.told)
        await bench.rest()
    assert len(bench.book.told) == 1
