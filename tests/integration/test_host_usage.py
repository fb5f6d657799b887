"""Usage by host: which incarnations ran there, and what an older store knows of it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from uuid import UUID

import pytest
import pytest_asyncio

from batcher.batch import table
from batcher.host_usage import host_report
from batcher.incarnation_hosts import TABLE, IncarnationHosts, blocks_of, keys_of
from batcher.settings import BatcherSettings
from batcher.store import Store
from batcher.windows import Window
from schemas.ids import new_id
from tests.support.store import DAY_NS, Reading, embedded_store, enriched, insert
from tests.support.usage import at, base_ms, fresh_customer


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def store(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Store]:
    async with embedded_store(tmp_path_factory.mktemp("host-usage") / "store") as opened:
        yield opened


async def used(store: Store, host: str, base: int, minutes: int) -> dict[str, tuple[int, int]]:
    """CPU and samples on a host, by customer."""
    window = Window.between(at(base), at(base + minutes * 60_000))
    customers, _ = await host_report(store, host, window, limit_s=30)
    return {one.customer_id: (one.totals["cpu_ns"], one.samples) for one in customers}


def ticks(vm_id: UUID, base: int, incarnation: int, cpu_ns: list[int], who: str) -> list[Reading]:
    return [
        Reading(vm_id, base + 30_000 * place, incarnation, counters={"cpu_ns": cpu}, customer=who)
        for place, cpu in enumerate(cpu_ns)
    ]


async def test_a_moved_vm_is_in_the_usage_of_each_of_its_hosts(store: Store) -> None:
    """With what it used there; late samples of the former host included."""
    base, acme, bolt = base_ms(), fresh_customer(), fresh_customer()
    moved, other = new_id(), new_id()
    there = ticks(moved, base + 120_000, 2, [0, 70], acme)
    here = [*ticks(moved, base, 1, [0, 5, 9], acme), *ticks(other, base, 1, [0, 0, 4], bolt)]
    for one in here[:2] + here[3:]:
        await insert(store, [enriched([one], host="h-old")])
    for one in there:
        await insert(store, [enriched([one], host="h-new")])
    assert await used(store, "h-old", base, 5) == {acme: (5, 2), bolt: (4, 3)}
    await insert(store, [enriched([here[2]], host="h-old")])
    assert await used(store, "h-old", base, 5) == {acme: (9, 3), bolt: (4, 3)}
    assert await used(store, "h-new", base, 5) == {acme: (70, 2)}
    assert await used(store, "h-new", base, 2) == {}
    assert await used(store, "h-none", base, 5) == {}


class Counting(Store):
    """A store that knows what was inserted where, and that is full at first if told so."""

    def __init__(self, settings: BatcherSettings) -> None:
        super().__init__(settings)
        self.inserted: list[tuple[str, int]] = []

    async def insert(self, table: str, rows: object, *, token: str) -> None:
        self.inserted.append((table, rows.num_rows))  # type: ignore[attr-defined]


async def test_only_new_incarnations_are_written_and_before_their_samples() -> None:
    """Once by each process; again after it had no room for them."""
    store = Counting(BatcherSettings(store_url="http://nowhere.invalid"))
    sink = IncarnationHosts(store, most_known=3)
    base, one, two = base_ms(), new_id(), new_id()

    async def put(host: str, *readings: Reading) -> list[tuple[str, int]]:
        store.inserted.clear()
        frames = [enriched([reading], host=host) for reading in readings]
        rows = sink.encode(table(frames, now_ns=time.time_ns(), keep_ns=DAY_NS))
        await sink.insert("samples", rows, token="t")
        return list(store.inserted)

    first = [Reading(one, base + 100 * n) for n in range(5)]
    assert await put("h1", *first, Reading(two, base)) == [(TABLE, 2), ("samples", 6)]
    assert await put("h1", *first, Reading(two, base)) == [("samples", 6)]
    assert await put("h1", Reading(two, base, 2)) == [(TABLE, 1), ("samples", 1)]
    assert await put("h1", Reading(two, base, 3)) == [(TABLE, 1), ("samples", 1)]
    assert await put("h1", *first) == [(TABLE, 1), ("samples", 5)]
    await store.close()


def test_each_incarnation_host_and_month_is_found() -> None:
    """In a batch of several hosts, VMs and months, whatever their order."""
    base, vms = base_ms(), [new_id() for _ in range(3)]
    frames, expected = [], set()
    for host in ("h1", "h2"):
        for number, vm_id in enumerate(vms):
            for months in (0, 1):
                collected_ns = time.time_ns() - months * 32 * DAY_NS
                reading = Reading(vm_id, base + 100 * months, incarnation=number)
                frames.append(enriched([reading], host=host, collected_at_ns=collected_ns))
                expected.add((host, vm_id.bytes, number, months))
    found = set(keys_of(blocks_of(table(frames, now_ns=time.time_ns(), keep_ns=99 * DAY_NS))))
    days = sorted({day for *_, day in found}, reverse=True)
    assert {(host, vm, number, days.index(day)) for host, vm, number, day in found} == expected
    assert all(str(at(day * 86_400_000).day) == "1" for day in days)
