"""The batcher's loop on a real nats-server, over a store that fails on command."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pyarrow as pa
import pytest

from batcher.flusher import HEALTH_PART
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
