"""The batcher's loop on a real nats-server, over a store that fails on command."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pyarrow as pa
import pytest

from batcher.stages import HEALTH_PART
from runtime.bus import Message
from runtime.errors import FatalError, OverloadedError, PoisonError, TransientError
from schemas import subjects
from schemas.codec import decoder
from schemas.frames import HEADER_DETAIL, HEADER_REPLAY, FramesStored
from schemas.ids import new_id
from tests.support.flusher import batcher, until

decode_stored = decoder(FramesStored)


async def test_a_store_that_comes_back_gets_everything(tmp_path: Path) -> None:
    """Unreachable, overloaded, then well: retried with pauses, unready meanwhile, acked after."""
    async with batcher(tmp_path) as b:
        errors = [TransientError("away"), TransientError("away"), OverloadedError("too many parts")]
        problems: list[str] = []

        def fault(_rows: pa.Table) -> Exception | None:
            problems.extend(b.health.problems.values())
            return errors.pop(0) if errors else None

        b.sink.fault = fault
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(b.run(), name="batcher")
            await b.publish(20)
            await until(lambda: len(b.sink.seqs) == 20 and not len(b.custody))
            b.stop.set()
        assert sorted(b.sink.seqs) == list(range(20))
        assert problems[:2] == ["away", "away"]
        assert HEALTH_PART not in b.health.problems
        await b.left(0)


async def test_replayed_frames_are_stored_and_tell_no_lag(tmp_path: Path) -> None:
    """How old they are says nothing about how fast frames are stored."""
    async with batcher(tmp_path) as b:
        told: list[FramesStored] = []

        async def hear(message: Message) -> None:
            told.append(decode_stored(message.data))

        await b.bus.subscribe(subjects.METRICS_STORED, hear)
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(b.run(), name="batcher")
            await b.publish(3, {HEADER_REPLAY: str(new_id())})
            await b.publish(2)
            await until(lambda: sum(stored.frames for stored in told) == 5)
            b.stop.set()
        assert len(b.sink.seqs) == 5
        assert sum(len(stored.lags_ms) for stored in told) == 2


async def test_nothing_is_acked_and_little_is_fetched_while_the_store_is_away(
    tmp_path: Path,
) -> None:
    """The stream keeps what the store has not got; the buffer stays at its bound."""
    async with batcher(tmp_path, rows=5) as b:
        b.sink.fault = lambda _rows: TransientError("away")
        await b.publish(300)
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(b.run(), name="batcher")
            await until(lambda: b.sink.calls >= 3)
            assert await b.unanswered() == 300
            # One batch at the store, one built, one collected, and what one pull may bring.
            assert len(b.custody) <= 5 + 5 + 5 + 64
            assert await b.custody.renew() > 0
            b.stop.set()
        assert b.sink.seqs == []
        assert await b.unanswered() == 300


async def test_bad_frames_are_bisected_out(tmp_path: Path) -> None:
    """Two bad ones in forty: they are set aside with the store's words, all others stored."""
    bad = {11, 29}

    def fault(rows: pa.Table) -> Exception | None:
        if bad & set(rows.column("seq").to_pylist()):
            return PoisonError("bad_data", "Code: 469. Constraint violated")
        return None

    async with batcher(tmp_path) as b:
        b.sink.fault = fault
        await b.publish(40)
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(b.run(), name="batcher")
            await until(lambda: len(b.sink.seqs) == 38)
            b.stop.set()
        assert sorted(b.sink.seqs) == sorted(set(range(40)) - bad)
        assert (await b.bus.js.stream_info("METRICS_REJECTED")).state.messages == len(bad)
        last = await b.bus.js.get_last_msg("METRICS_REJECTED", "metrics.rejected.>")
        assert last.headers
        assert "469" in last.headers[HEADER_DETAIL]
        await b.left(0)


async def test_a_store_that_refuses_the_user_ends_the_batcher(tmp_path: Path) -> None:
    """No retry gives rights: the loop stops with the reason, and nothing is acked."""
    async with batcher(tmp_path) as b:
        b.sink.fault = lambda _rows: FatalError("the store refuses this user")
        await b.publish(3)
        with pytest.RaisesGroup(FatalError):
            async with asyncio.timeout(30):
                await b.run()
        assert await b.unanswered() == 3


async def test_nothing_is_acked_before_its_hours_are_stored(tmp_path: Path) -> None:
    """The samples are in and announced; while `usage_hour` takes nothing their frames stay open."""
    async with batcher(tmp_path, rows=5) as b:
        told: list[FramesStored] = []

        async def hear(message: Message) -> None:
            told.append(decode_stored(message.data))

        await b.bus.subscribe(subjects.METRICS_STORED, hear)
        tried: list[int] = []

        def fault(rows: pa.Table) -> Exception | None:
            tried.append(rows.num_rows)
            return TransientError("away") if closed.is_set() else None

        closed = asyncio.Event()
        closed.set()
        b.sink.fault_of_hours = fault
        await b.publish(20)
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(b.run(), name="batcher")
            await until(lambda: sum(stored.frames for stored in told) == 20 and len(tried) > 1)
            assert sorted(b.sink.seqs) == list(range(20))
            assert await b.unanswered() == len(b.custody) == 20
            assert b.health.problems[HEALTH_PART] == "away"
            closed.clear()
            await until(lambda: not len(b.custody))
            b.stop.set()
        assert sum(roll.num_rows for roll in b.sink.rolls) == 20
        assert len(b.sink.rolls) < 4
        await b.left(0)


async def test_hours_that_are_refused_wait_for_an_operator(tmp_path: Path) -> None:
    """Their frames are not at fault: none is set aside, and they go on once it takes rows."""
    async with batcher(tmp_path) as b:
        errors = [PoisonError("bad_data", "Code: 469. Constraint violated")]
        b.sink.fault_of_hours = lambda _rows: errors.pop() if errors else None
        await b.publish(3)
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(b.run(), name="batcher")
            await until(lambda: bool(b.sink.rolls) and not len(b.custody))
            b.stop.set()
        assert (await b.bus.js.stream_info("METRICS_REJECTED")).state.messages == 0
        assert b.sink.seqs == [0, 1, 2]
        await b.left(0)


async def test_told_to_stop_it_leaves_frames_whose_hours_are_not_taken(tmp_path: Path) -> None:
    """They come again after the next start: it does not wait for a store that is away."""
    async with batcher(tmp_path) as b:
        b.sink.fault_of_hours = lambda _rows: TransientError("away")
        await b.publish(3)
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(b.run(), name="batcher")
            await until(lambda: len(b.sink.seqs) == 3)
            b.stop.set()
        assert not b.sink.rolls
        assert await b.unanswered() == 3


async def test_a_store_that_refuses_hours_for_good_ends_the_batcher(tmp_path: Path) -> None:
    """With no rights to `usage_hour`: nothing is acked."""
    async with batcher(tmp_path) as b:
        b.sink.fault_of_hours = lambda _rows: FatalError("the store refuses this user")
        await b.publish(3)
        with pytest.RaisesGroup(FatalError, flatten_subgroups=True):
            async with asyncio.timeout(30):
                await b.run()
        assert await b.unanswered() == 3
