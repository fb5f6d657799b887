"""The batcher's loop on a real nats-server, over a store that does what a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from batcher.buffer import Buffer, Custody, Limits
from batcher.corrections import Corrections
from batcher.flusher import Flusher
from batcher.intake import Intake
from batcher.refusals import Refusals
from batcher.telemetry import Instruments
from runtime.buckets import Bucket
from runtime.bus import Bus
from runtime.clock import SystemClock
from runtime.consumer import Consumer
from runtime.health import Health
from runtime.publisher import Publisher
from schemas import subjects
from schemas.corrections import decode_vm_corrections
from schemas.frames import encode_frame
from schemas.ids import new_id
from tests.support.nats import bus_with_streams
from tests.support.store import DAY_NS, Reading, enriched

TICK_MS = 1_900_000_000_000


@dataclass
class FaultySink:
    """Keeps what it is given, unless `fault` has an error for it.

    Attributes:
        open: While it is not set, the store takes its time.
        tried: The frames of each call.
        together: How many calls were under way at once, at most.
        rolls: The hours that came, a table for each call.
        fault_of_hours: As `fault`, for them.
    """

    fault: Callable[[pa.Table], Exception | None] = lambda _rows: None
    seqs: list[int] = field(default_factory=list)
    calls: int = 0
    open: asyncio.Event = field(default_factory=asyncio.Event)
    tried: list[list[int]] = field(default_factory=list)
    together: int = 0
    rolls: list[pa.Table] = field(default_factory=list)
    fault_of_hours: Callable[[pa.Table], Exception | None] = lambda _rows: None
    _inside: int = 0

    async def insert(self, table: str, rows: pa.Table, *, token: str) -> None:
        assert token
        if table == "usage_hour":
            if error := self.fault_of_hours(rows):
                raise error
            self.rolls.append(rows)
            return
        assert table == "samples"
        assert set(rows.column("hours_apart").to_pylist()) == {1}
        self.calls += 1
        seqs = sorted(int(str(seq)) for seq in rows.column("seq"))
        self.tried.append(seqs)
        self._inside += 1
        self.together = max(self.together, self._inside)
        try:
            await self.open.wait()
        finally:
            self._inside -= 1
        if error := self.fault(rows):
            raise error
        self.seqs += seqs


@dataclass
class Batcher:
    """The loop and what a test looks at."""

    bus: Bus
    sink: FaultySink
    stop: asyncio.Event
    health: Health
    flusher: Flusher
    intake: Intake
    buffer: Buffer
    custody: Custody

    async def run(self) -> None:
        """Until `stop`, as the batcher's `main` does."""
        async with asyncio.TaskGroup() as group:
            fetching = group.create_task(self.intake.run(self.stop), name="intake")
            await self.flusher.run()
            fetching.cancel()

    async def publish(self, count: int, headers: dict[str, str] | None = None) -> None:
        """So many frames of one row, numbered from 0."""
        publisher = Publisher(self.bus)
        for seq in range(count):
            frame = enriched([Reading(new_id(), TICK_MS)], seq=seq)
            await publisher.publish(
                "metrics.enriched.h1", encode_frame(frame), msg_id=frame.msg_id, headers=headers
            )

    async def unanswered(self) -> int:
        """Frames that the server waits for an answer to, or has not given out."""
        info = await self.bus.js.consumer_info(subjects.METRICS_ENRICHED, "batcher")
        return (info.num_pending or 0) + (info.num_ack_pending or 0)

    async def left(self, frames: int) -> None:
        """Return once so many frames have no answer; the server takes acks in its own time."""
        async with asyncio.timeout(10):
            while await self.unanswered() != frames:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def batcher(folder: Path, *, rows: int = 1000) -> AsyncIterator[Batcher]:
    """A batcher whose batches hold so many rows; nothing runs yet."""
    async with bus_with_streams(folder) as (_, bus):
        clock, instruments, health, stop = SystemClock(), Instruments(), Health(), asyncio.Event()
        custody = Custody(clock, renew_after_s=0.0)
        refusals = Refusals(Publisher(bus), custody, instruments)
        buffer = Buffer(Limits(rows, 10**9, 20), clock)
        consumer = Consumer(bus, subjects.METRICS_ENRICHED, "batcher", ack_wait_s=5)
        sink = FaultySink()
        sink.open.set()
        flusher = Flusher(
            sink=sink, rollups=sink, buffer=buffer, custody=custody, refusals=refusals, bus=bus,
            health=health, instruments=instruments, clock=clock, keep_ns=DAY_NS, stop=stop,
            corrections=Corrections(Bucket(bus, subjects.CORRECTIONS, decode_vm_corrections)),
        )  # fmt: skip
        intake = Intake(consumer, buffer, custody, refusals)
        yield Batcher(bus, sink, stop, health, flusher, intake, buffer, custody)


async def until(condition: Callable[[], bool]) -> None:
    """Return once it holds."""
    while not condition():
        await asyncio.sleep(0.01)
