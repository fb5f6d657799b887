"""While one batch is inserted the next is built: in order, bounded, and with the same promises."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pyarrow as pa
import pytest

from runtime.errors import FatalError, PoisonError, TransientError
from tests.support.flusher import Batcher, batcher, until

ROWS = 5


def first_seq(rows: pa.Table) -> int:
    return min(int(str(seq)) for seq in rows.column("seq"))


def building() -> bool:
    """Whether a batch is being collected or built right now."""
    return "flusher-ahead" in {task.get_name() for task in asyncio.all_tasks()}


async def one_in_each_phase(b: Batcher) -> None:
    """Return once one batch is at the store, the next one is built and a third is collected."""
    await until(lambda: b.flusher.in_hand == 2 and not building() and b.buffer.full)


async def test_the_next_batch_is_built_while_one_is_inserted(tmp_path: Path) -> None:
    """Three batches in hand and no more; inserts come one at a time, in order."""
    async with batcher(tmp_path, rows=ROWS) as b:
        b.sink.open.clear()
        await b.publish(8 * ROWS)
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(b.run(), name="batcher")
            await one_in_each_phase(b)
            assert b.sink.tried == [list(range(ROWS))]
            assert b.sink.seqs == []
            assert await b.unanswered() == 8 * ROWS
            b.sink.open.set()
            await until(lambda: len(b.sink.seqs) == 8 * ROWS and not len(b.custody))
            b.stop.set()
        assert b.sink.seqs == list(range(8 * ROWS))
        assert b.sink.together == 1
        assert b.flusher.in_hand == 0
        await b.left(0)


async def test_acks_wait_for_the_stores_yes_and_for_nothing_else(tmp_path: Path) -> None:
    """The first batch is acked while the second is at the store; of the second nothing is."""
    async with batcher(tmp_path, rows=ROWS) as b:

        def fault(rows: pa.Table) -> Exception | None:
            if first_seq(rows) == 0:
                b.sink.open.clear()
            return None

        b.sink.fault = fault
        await b.publish(4 * ROWS)
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(b.run(), name="batcher")
            await until(lambda: b.sink.calls == 2)
            await b.left(3 * ROWS)
            await one_in_each_phase(b)
            assert await b.unanswered() == len(b.custody) == 3 * ROWS
            b.sink.open.set()
            b.stop.set()
        assert b.sink.seqs == list(range(4 * ROWS))
        await b.left(0)


async def test_a_bad_batch_is_bisected_before_the_next_one_is_inserted(tmp_path: Path) -> None:
    """The store refuses one frame of the first batch while the second is built: order stands."""
    async with batcher(tmp_path, rows=ROWS) as b:
        b.sink.open.clear()
        b.sink.fault = lambda rows: (
            PoisonError("bad_data", "no") if 2 in rows.column("seq").to_pylist() else None
        )
        await b.publish(3 * ROWS)
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(b.run(), name="batcher")
            await one_in_each_phase(b)
            b.sink.open.set()
            await until(lambda: len(b.sink.seqs) == 3 * ROWS - 1 and not len(b.custody))
            b.stop.set()
        assert b.sink.seqs == [seq for seq in range(3 * ROWS) if seq != 2]
        assert b.sink.tried.index(list(range(ROWS, 2 * ROWS))) > b.sink.tried.index([2])
        assert (await b.bus.js.stream_info("METRICS_REJECTED")).state.messages == 1
        await b.left(0)


async def test_a_fatal_error_ends_it_with_a_batch_built(tmp_path: Path) -> None:
    """What was stored before is acked, what was built and collected behind it is not."""
    async with batcher(tmp_path, rows=ROWS) as b:

        def fault(rows: pa.Table) -> Exception | None:
            return None if first_seq(rows) == 0 else FatalError("no rights")

        b.sink.fault = fault
        b.sink.open.clear()
        await b.publish(4 * ROWS)
        async with asyncio.timeout(30):
            running = asyncio.create_task(b.run(), name="batcher")
            await one_in_each_phase(b)
            b.sink.open.set()
            with pytest.RaisesGroup(FatalError):
                await running
        assert b.sink.seqs == list(range(ROWS))
        assert b.flusher.in_hand == 0
        assert len(b.custody) == 3 * ROWS
        await b.left(3 * ROWS)


async def test_told_to_stop_it_stores_what_is_built_and_collected(tmp_path: Path) -> None:
    """A store that answers gets everything that was fetched, and all of it is acked."""
    async with batcher(tmp_path, rows=ROWS) as b:
        b.sink.open.clear()
        await b.publish(3 * ROWS)
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(b.run(), name="batcher")
            await one_in_each_phase(b)
            b.stop.set()
            b.sink.open.set()
        assert b.sink.seqs == list(range(3 * ROWS))
        await b.left(0)


async def test_told_to_stop_it_abandons_what_a_store_that_is_away_did_not_take(
    tmp_path: Path,
) -> None:
    """The batch at the store, the built one and the collected one all come again."""
    async with batcher(tmp_path, rows=ROWS) as b:
        b.sink.open.clear()
        b.sink.fault = lambda _rows: TransientError("away")
        await b.publish(3 * ROWS)
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(b.run(), name="batcher")
            await one_in_each_phase(b)
            b.stop.set()
            b.sink.open.set()
        assert b.sink.calls == 1
        assert b.sink.seqs == []
        assert b.flusher.in_hand == 0
        assert len(b.custody) == 3 * ROWS
        await b.left(3 * ROWS)


async def test_told_to_stop_while_idle_it_ends(tmp_path: Path) -> None:
    """Nothing collected, nothing built, nothing stored: it returns at once."""
    async with batcher(tmp_path, rows=ROWS) as b:
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(b.run(), name="batcher")
            await until(building)
            b.stop.set()
        assert b.sink.calls == 0


async def test_cancelled_it_leaves_no_task_and_acks_nothing(tmp_path: Path) -> None:
    """With a batch in each phase."""
    async with batcher(tmp_path, rows=ROWS) as b:
        b.sink.open.clear()
        await b.publish(3 * ROWS)
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            running = group.create_task(b.run(), name="batcher")
            await one_in_each_phase(b)
            running.cancel()
        assert not building()
        assert b.flusher.in_hand == 0
        assert len(b.custody) == 3 * ROWS
        await b.left(3 * ROWS)
