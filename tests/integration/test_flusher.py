"""The batcher's loop on a real nats-server, over a store that fails on command."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import pyarrow as pa
import pytest

from batcher.buffer import Buffer, Custody, Limits
from batcher.flusher import HEALTH_PART, Flusher
from batcher.intake import Intake
from batcher.refusals import Refusals
from batcher.telemetry import Instruments
from runtime.bus import Bus, Message
from runtime.clock import SystemClock
from runtime.consumer import Consumer
from runtime.errors import FatalError, OverloadedError, PoisonError, TransientError
from runtime.health import Health
from runtime.publisher import Publisher
from schemas import subjects
from schemas.codec import decoder
from schemas.frames import HEADER_DETAIL, HEADER_REPLAY, FramesStored, encode_frame
from schemas.ids import new_id
from tests.support.nats import bus_with_streams
from tests.support.store import DAY_NS, Reading, enriched

TICK_MS = 1_900_000_000_000
decode_stored = decoder(FramesStored)


@dataclass
class FaultySink:
    """Keeps what it is given, unless `fault` has an error for it."""

    fault: Callable[[pa.Table], Exception | None] = lambda _rows: None
    seqs: list[int] = field(default_factory=list)
    calls: int = 0
    called: asyncio.Event = field(default_factory=asyncio.Event)

    async def insert(self, table: str, rows: pa.Table, *, token: str) -> None:
        assert table == "samples"
        assert token
        self.calls += 1
        self.called.set()
        if error := self.fault(rows):
            raise error
        self.seqs += [int(str(seq)) for seq in rows.column("seq")]


@dataclass
class Batcher:
    """The loop and what a test looks at."""

    bus: Bus
    sink: FaultySink
    stop: asyncio.Event
    health: Health
    flusher: Flusher
    intake: Intake
    custody: Custody

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            fetching = group.create_task(self.intake.run(self.stop), name="intake")
            await self.flusher.run()
            fetching.cancel()

    async def publish(self, count: int, headers: dict[str, str] | None = None) -> None:
        publisher = Publisher(self.bus)
        for seq in range(count):
            frame = enriched([Reading(vm(), TICK_MS)], seq=seq)
            await publisher.publish(
                "metrics.enriched.h1", encode_frame(frame), msg_id=frame.msg_id, headers=headers
            )

    async def unanswered(self) -> int:
        info = await self.bus.js.consumer_info(subjects.METRICS_ENRICHED, "batcher")
        return (info.num_pending or 0) + (info.num_ack_pending or 0)


def vm() -> UUID:
    return new_id()


@asynccontextmanager
async def batcher(folder: Path, *, rows: int = 1000) -> AsyncIterator[Batcher]:
    async with bus_with_streams(folder) as (_, bus):
        clock, instruments, health, stop = SystemClock(), Instruments(), Health(), asyncio.Event()
        custody = Custody(clock, renew_after_s=0.0)
        refusals = Refusals(Publisher(bus), custody, instruments)
        buffer = Buffer(Limits(rows, 10**9, 20), clock)
        consumer = Consumer(bus, subjects.METRICS_ENRICHED, "batcher", ack_wait_s=5)
        sink = FaultySink()
        flusher = Flusher(
            sink=sink, buffer=buffer, custody=custody, refusals=refusals, bus=bus, health=health,
            instruments=instruments, clock=clock, keep_ns=DAY_NS, stop=stop,
        )  # fmt: skip
        intake = Intake(consumer, buffer, custody, refusals)
        yield Batcher(bus, sink, stop, health, flusher, intake, custody)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


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
        assert await b.unanswered() == 0


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
            # One batch in work, one behind it, and what one pull may bring.
            assert len(b.custody) <= 5 + 5 + 64
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
        assert await b.unanswered() == 0


async def test_a_store_that_refuses_the_user_ends_the_batcher(tmp_path: Path) -> None:
    """No retry gives rights: the loop stops with the reason, and nothing is acked."""
    async with batcher(tmp_path) as b:
        b.sink.fault = lambda _rows: FatalError("the store refuses this user")
        await b.publish(3)
        with pytest.RaisesGroup(FatalError):
            async with asyncio.timeout(30):
                await b.run()
        assert await b.unanswered() == 3
