"""Usage in many windows at once out of a real chDB: each is what a query for it alone says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from pathlib import Path
from uuid import UUID

import pyarrow as pa
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batcher.store import Store
from batcher.windowed import Cells, cells
from batcher.windows import Window
from schemas.ids import new_id
from schemas.vms import METERS
from tests.support.store import Reading, embedded_store, enriched, insert, insert_apart
from tests.support.usage import LIMIT_S, ask, base_ms, expected, fresh_customer

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
UNITS = (1, MINUTE, HOUR, DAY)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def store(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Store]:
    folder: Path = tmp_path_factory.mktemp("windows")
    async with embedded_store(folder / "store") as opened:
        yield opened


async def asked(
    store: Store, customer: str, edges: Sequence[int], rolled_until: int | None = None
) -> Cells:
    """All windows by one query."""
    window = Window(edges[0], edges[-1]).rolled(rolled_until)
    return await cells(store, customer, (), edges, window, limit_s=LIMIT_S)


@st.composite
def lives(draw: st.DrawFn) -> list[Reading]:
    """VMs of one customer over some days, with gaps of any length, and restarts."""
    customer = fresh_customer()
    base = base_ms() // DAY * DAY - 5 * DAY
    gaps = st.sampled_from([1, 2, 599, 600, 601, 35_000, 36_000, 400_000, 900_000])
    readings: list[Reading] = []
    for _ in range(draw(st.integers(1, 3))):
        vm_id, tick = new_id(), base + 100 * draw(st.integers(0, 900_000))
        for incarnation in range(1, draw(st.integers(1, 2)) + 1):
            counters = dict.fromkeys(METERS, 0)
            for _ in range(draw(st.integers(1, 6))):
                readings.append(
                    Reading(vm_id, tick, incarnation, 0, dict(counters), customer=customer)
                )
                tick += 100 * draw(gaps)
                for meter in METERS:
                    counters[meter] += draw(st.integers(0, 2**40))
    return readings


@st.composite
def edges_near(draw: st.DrawFn, readings: Sequence[Reading]) -> list[int]:
    """Windows whose inner edges are whole units, and whose ends are anywhere."""
    unit = draw(st.sampled_from(UNITS))
    near = [
        tick // unit * unit + step * unit
        for tick in {reading.tick_ms for reading in readings}
        for step in (0, 1, 2)
    ]
    inner = draw(st.lists(st.sampled_from(near), min_size=1, max_size=8, unique=True))
    before, after = draw(st.integers(1, 2 * DAY)), draw(st.integers(1, 2 * DAY))
    return [min(inner) - before, *sorted(inner), max(inner) + after]


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(readings=lives(), data=st.data())
async def test_each_window_is_what_a_query_for_it_alone_says(
    store: Store, readings: list[Reading], data: st.DataObject
) -> None:
    """To the unit, by its definition; the windows add up to the whole, hours behind or not."""
    customer = readings[0].customer
    half = len(readings) // 2
    waiting: list[tuple[int, pa.Table]] = []
    for part in (readings[:half], readings[half:], readings[:1]):
        frames = [enriched([reading]) for reading in part]
        if not frames:
            continue
        if data.draw(st.booleans()):
            waiting.append((part[0].tick_ms, await insert_apart(store, frames)))
        else:
            await insert(store, frames)
    behind = min((reading.tick_ms for reading in readings), default=None) if waiting else None
    for rolled in (False, True):
        edges = data.draw(edges_near(readings))
        found = await asked(store, customer, edges, None if rolled else behind)
        totals = dict.fromkeys(METERS, 0)
        samples = 0
        for number, (start, end) in enumerate(pairwise(edges)):
            truth = expected(readings, start, end)
            got = {vm: by_slot[number] for vm, by_slot in found.items() if number in by_slot}
            assert got.keys() == truth.keys()
            for vm_id, cell in got.items():
                row = truth[vm_id]
                assert cell.used == tuple(getattr(row, meter) for meter in METERS)
                assert (cell.samples, cell.incarnations) == (row.samples, row.incarnations)
                samples += cell.samples
                for meter, amount in zip(METERS, cell.used, strict=True):
                    totals[meter] += amount
        if rolled:
            whole = await ask(store, customer, edges[0], edges[-1])
            assert totals == whole.totals
            assert samples == sum(row.samples for row in whole.vms)
        for first, rows in waiting:
            await store.insert("usage_hour", rows, token=f"{customer}-{first}-{rows.num_rows}")


async def test_others_vms_stay_out(store: Store) -> None:
    """Whatever the windows; and only named VMs are read where some are named."""
    customer, other, base = fresh_customer(), fresh_customer(), base_ms()
    one, two = new_id(), new_id()
    counters = dict.fromkeys(METERS, 7)

    def read(vm_id: UUID, owner: str) -> Reading:
        return Reading(vm_id, base, counters=counters, customer=owner)

    await insert(
        store, [enriched([read(one, customer), read(two, customer), read(new_id(), other)])]
    )
    edges = [base - DAY, base, base + MINUTE, base + DAY]
    assert (await asked(store, customer, edges)).keys() == {one, two}
    window = Window(edges[0], edges[-1])
    found = await cells(store, customer, (two,), edges, window, limit_s=LIMIT_S)
    assert found.keys() == {two}
    assert found[two].keys() == {1}
