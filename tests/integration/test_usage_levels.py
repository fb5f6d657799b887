"""Each rollup by itself, and answers while hours are still to come."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batcher.store import Store
from batcher.usage import report
from batcher.windows import Window
from schemas.frames import EnrichedFrame
from schemas.ids import new_id
from schemas.usage import UsageQuery
from schemas.vms import METERS
from tests.support.store import Reading, embedded_store, enriched, insert, insert_apart
from tests.support.usage import LIMIT_S, at, base_ms, expected, fresh_customer, grown


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def store(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Store]:
    folder: Path = tmp_path_factory.mktemp("levels")
    async with embedded_store(folder / "store") as opened:
        yield opened


MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000


@dataclass(frozen=True)
class LongStory:
    """Batches out of the last days, and windows of whole minutes, hours and days."""

    kept: Sequence[Reading]
    batches: Sequence[Sequence[EnrichedFrame]]
    windows: dict[int, tuple[int, int]]


@st.composite
def long_stories(draw: st.DrawFn) -> LongStory:
    customer, run_id = fresh_customer(), new_id()
    base = base_ms() // DAY * DAY - 6 * DAY
    gaps = st.one_of(
        st.integers(1, 4), st.integers(500, 700), st.integers(30_000, 40_000),
        st.integers(100_000, 1_000_000),
    )  # fmt: skip
    readings: list[Reading] = []
    for _ in range(draw(st.integers(1, 2))):
        vm_id, tick = new_id(), base + 100 * draw(st.integers(0, 900_000))
        for incarnation in range(1, draw(st.integers(1, 2)) + 1):
            value = 0
            for _ in range(draw(st.integers(1, 6))):
                readings.append(
                    Reading(vm_id, tick, incarnation, 0, dict.fromkeys(METERS, value), customer)
                )
                tick += 100 * draw(gaps)
                value += draw(st.integers(0, 2**40))
    order = draw(st.permutations(readings))
    now_ns = base_ms() * 10**6
    batches = [
        [
            enriched(
                [reading], run_id=run_id, seq=seq,
                collected_at_ns=now_ns - draw(st.integers(0, 5)) * DAY * 10**6,
            )
            for seq, reading in enumerate(part)
        ]
        for part in (order[: len(order) // 2], order[len(order) // 2 :], order[:1])
        if part
    ]  # fmt: skip
    windows = {}
    for unit in (MINUTE, HOUR, DAY):
        begun = sorted({r.tick_ms // unit * unit for r in readings})
        borders = [t + step * unit for t in begun for step in (-1, 0, 1, 2)]
        ends = draw(st.lists(st.sampled_from(borders), min_size=2, max_size=2, unique=True))
        windows[unit] = (min(ends), max(ends))
    return LongStory(readings, batches, windows)


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(story=long_stories())
async def test_each_rollup_answers_alone_once_the_finer_ones_are_gone(
    store: Store, story: LongStory
) -> None:
    """Whole minutes need no ticks, whole hours no minutes, whole days no hours."""
    for batch in story.batches:
        await insert(store, batch)
    customer = story.kept[0].customer
    for gone, unit in (("samples", MINUTE), ("usage_minute", HOUR), ("usage_hour", DAY)):
        start, end = story.windows[unit]
        await store.command(f"TRUNCATE TABLE {gone}")
        query = UsageQuery(start=at(start), end=at(end))
        counted_from = start if gone == "samples" else end
        window = Window(start, end, counted_from)
        answer = await report(store, customer, query, window, limit_s=LIMIT_S)
        truth = expected(story.kept, start, end)
        if counted_from == end:
            truth = {vm: msgspec.structs.replace(row, samples=0) for vm, row in truth.items()}
            assert answer.samples_since == at(end)
        assert {row.vm_id: row for row in answer.vms} == truth


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(story=long_stories(), data=st.data())
async def test_hours_that_are_still_to_come_change_no_answer(
    store: Store, story: LongStory, data: st.DataObject
) -> None:
    """Some batches have their samples stored and not their hours: minutes are read instead."""
    customer, waiting = story.kept[0].customer, list[tuple[int, pa.Table]]()
    for batch in story.batches:
        if data.draw(st.booleans()):
            rows = await insert_apart(store, batch)
            waiting.append((min(frame.tick_ms for frame in batch), rows))
        else:
            await insert(store, batch)
    behind_since = min((first for first, _ in waiting), default=None)
    for rolled in (False, True):
        for start, end in story.windows.values():
            window = Window(start, end).rolled(None if rolled else behind_since)
            query = UsageQuery(start=at(start), end=at(end))
            answer = await report(store, customer, query, window, limit_s=LIMIT_S)
            assert {r.vm_id: r for r in answer.vms} == expected(story.kept, start, end)
        for first, rows in waiting:
            await store.insert("usage_hour", rows, token=f"{customer}-{first}-{rows.num_rows}")


@pytest.mark.parametrize("later", [MINUTE, HOUR, 2 * DAY])
async def test_a_silent_time_is_not_billed_before_the_hours_are_there(
    store: Store, later: int
) -> None:
    """An incarnation goes on after a while: what it had counted before is known from its days."""
    customer, vm_id, base = fresh_customer(), new_id(), base_ms() // DAY * DAY
    await insert(store, [enriched([grown(vm_id, base, 1000, customer=customer)])])
    begin = base + later
    await insert_apart(store, [enriched([grown(vm_id, begin + 500, 1003, customer=customer)])])
    for start, end in ((begin, begin + 1000), (begin, begin + DAY), (begin + 500, begin + HOUR)):
        window = Window(start, end).rolled(begin + 500)
        query = UsageQuery(start=at(start), end=at(end))
        answer = await report(store, customer, query, window, limit_s=LIMIT_S)
        assert answer.totals["cpu_ns"] == 3
