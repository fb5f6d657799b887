"""Everything of the batcher that corrects the past, in this process: real server, real engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa

from batcher.backfill import Backfills
from batcher.backfill_sql import TABLES
from batcher.buffer import Buffer, Custody, Limits
from batcher.corrections import Corrections
from batcher.figures import Figures
from batcher.flusher import Flusher
from batcher.intake import Intake
from batcher.mover import Mover
from batcher.refusals import Refusals
from batcher.settling import Settler
from batcher.store import Encoded, Store
from batcher.telemetry import Instruments
from batcher.usage import report
from batcher.watermark import Placements, Watermark, decode_placed
from batcher.windows import Window
from runtime.buckets import Bucket
from runtime.bus import Bus
from runtime.clock import SystemClock
from runtime.consumer import Consumer
from runtime.errors import FatalError, TransientError
from runtime.health import Health
from runtime.publisher import Publisher
from schemas import subjects
from schemas.corrections import (
    Backfill,
    BackfillWish,
    VmCorrections,
    decode_vm_corrections,
)
from schemas.frames import EnrichedFrame, SampleFlag, encode_frame
from schemas.hosts import decode_host_loss
from schemas.ids import new_id
from schemas.usage import UsageQuery
from schemas.vms import METERS, Counters
from tests.support.batcher import answered
from tests.support.nats import bus_with_streams
from tests.support.store import DAY_NS, Reading, embedded_store, enriched

BASE_MS = time.time_ns() // 10**9 * 1000 - 3_600_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
ALL = range(10_000)


def at(ticks: int) -> datetime:
    """The time of a tick."""
    return EPOCH + timedelta(milliseconds=BASE_MS + 100 * ticks)


def life(
    vm_id: UUID,
    ticks: range,
    *,
    incarnation: int = 1,
    customer: str = "acme",
    final: bool = True,
    step: int = 10,
) -> list[EnrichedFrame]:
    """An incarnation, tick by tick: each counter grows by `step` and its place among the meters."""
    run_id = new_id()
    return [
        enriched(
            [
                Reading(
                    vm_id,
                    BASE_MS + 100 * tick,
                    incarnation,
                    int(SampleFlag.FINAL) if final and tick == ticks[-1] else 0,
                    {m: (tick - ticks[0]) * (step + place) for place, m in enumerate(METERS)},
                    customer,
                )
            ],
            run_id=run_id,
            seq=tick,
        )
        for tick in ticks
    ]


def own(
    vm_id: UUID, customer: str, first: int = 1, last: int = 1, *, running: bool = False
) -> BackfillWish:
    """A wish that incarnations were a customer's."""
    return BackfillWish(
        vm_id=vm_id,
        customer_id=customer,
        first_incarnation=first,
        last_incarnation=last,
        running=running,
    )


def used(ticks: int, step: int = 10) -> Counters:
    """What a life of so many ticks has used at its end."""
    return Counters(**{m: (ticks - 1) * (step + place) for place, m in enumerate(METERS)})


class Gated(Store):
    """A store that can be made to wait before it inserts, and to die.

    Attributes:
        open: While it is not set, inserts wait.
        waiting: Set while one does.
        lives: So many statements are still done; none ends with an error before anything is done.
        refuses: Statements are refused.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store.settings)
        self._inner = store
        self.open = asyncio.Event()
        self.open.set()
        self.waiting = asyncio.Event()
        self.lives: int | None = None
        self.refuses = False

    async def query(
        self,
        sql: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        settings: Mapping[str, Any] | None = None,
    ) -> Sequence[Sequence[Any]]:
        return await self._inner.query(sql, parameters, settings=settings)

    async def command(self, sql: str, parameters: Mapping[str, Any] | None = None) -> None:
        if self.refuses:
            raise FatalError("this user may not do that")
        if self.lives is not None:
            if not self.lives:
                raise TransientError("killed")
            self.lives -= 1
        await self._inner.command(sql, parameters)

    async def insert(self, table: str, rows: pa.Table | Encoded, *, token: str) -> None:
        if not self.open.is_set():
            self.waiting.set()
            await self.open.wait()
        await self._inner.insert(table, rows, token=token)


@dataclass
class Past:
    """A batcher's parts.

    Attributes:
        lines: Customers' rows per table, for what is left of whom.
    """

    bus: Bus
    store: Gated
    corrections: Corrections
    bucket: Bucket[VmCorrections]
    backfills: Backfills
    figures: Figures
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    def settler(self, look_every_s: float = 60.0) -> Settler:
        """One that knows nothing of what was done before."""
        return Settler(
            Mover(self.store),
            self.figures,
            self.corrections,
            Publisher(self.bus),
            look_every_s=look_every_s,
        )

    def watermark(self) -> Watermark:
        """Says how far answers are complete; knows of no VM's host."""
        return Watermark(
            self.store,
            Bucket(self.bus, subjects.VM_SPECS, decode_placed),
            Bucket(self.bus, subjects.LOST_HOSTS, decode_host_loss),
            SystemClock(),
            corrections=self.corrections,
            margin_ms=0,
        )

    async def publish(self, frames: Sequence[EnrichedFrame], *, again: bool = False) -> None:
        """Put enriched frames into their stream."""
        publisher = Publisher(self.bus)
        async with asyncio.TaskGroup() as group:
            for frame in frames:
                msg_id = str(new_id()) if again else frame.msg_id
                group.create_task(
                    publisher.publish(
                        subjects.metrics_enriched(frame.host), encode_frame(frame), msg_id=msg_id
                    )
                )

    async def stored(self) -> None:
        """Return once all of them are answered."""
        async with asyncio.timeout(30):
            await answered(self.bus, subjects.METRICS_ENRICHED, "batcher")

    async def correct(self, wish: BackfillWish, *, settle: bool = True) -> Backfill:
        """Accept a wish, and do it."""
        done = await self.backfills.accept(wish, "tester", "because")
        if settle:
            await self.settle(wish.vm_id)
        return done

    async def settle(self, *vm_ids: UUID) -> None:
        await self.corrections.current()
        async with asyncio.timeout(30):
            await self.settler().settle(vm_ids)

    async def used(self, customer: str, ticks: range, *vm_ids: UUID) -> dict[UUID, Counters]:
        """What a customer is billed of a window, as any other usage is."""
        query = UsageQuery(start=at(ticks.start), end=at(ticks.stop), vm_ids=vm_ids)
        answer = await report(
            self.store, customer, query, Window.between(query.start, query.end), limit_s=10
        )
        return {row.vm_id: Counters(**{m: getattr(row, m) for m in METERS}) for row in answer.vms}

    async def rows(self, customer: str, vm_id: UUID) -> dict[str, int]:
        """How many rows of a VM stand under a customer, by table; only where there are any."""
        counts = {}
        for table in TABLES:
            found = await self.store.query(
                f"SELECT count() FROM {table} FINAL"  # noqa: S608 - our own names only
                " WHERE customer_id = {c:String} AND vm_id = {v:UUID}",
                {"c": customer, "v": str(vm_id)},
            )
            if int(found[0][0]):
                counts[table] = int(found[0][0])
        return counts


@asynccontextmanager
async def past(folder: Path) -> AsyncIterator[Past]:
    """Intake, flusher and corrections at work; rows are moved when a test says so."""
    async with bus_with_streams(folder / "nats") as (_, bus), embedded_store(folder / "s") as inner:
        store = Gated(inner)
        bucket: Bucket[VmCorrections] = Bucket(bus, subjects.CORRECTIONS, decode_vm_corrections)
        corrections = Corrections(bucket)
        figures = Figures(store)
        clock, instruments, stop = SystemClock(), Instruments(), asyncio.Event()
        backfills = Backfills(figures, corrections, Placements(), Publisher(bus), clock)
        custody = Custody(clock, renew_after_s=2.0)
        refusals = Refusals(Publisher(bus), custody, instruments)
        buffer = Buffer(Limits(1000, 10**9, 20), clock)
        consumer = Consumer(bus, subjects.METRICS_ENRICHED, "batcher", ack_wait_s=6)
        flusher = Flusher(
            sink=store, rollups=store, buffer=buffer, custody=custody, refusals=refusals, bus=bus,
            health=Health(), instruments=instruments, clock=clock, keep_ns=7 * DAY_NS,
            stop=stop, corrections=corrections, encode=inner.encode, encode_rollups=inner.encode,
        )  # fmt: skip
        async with asyncio.TaskGroup() as group:
            following = group.create_task(corrections.run(), name="corrections")
            intake = Intake(consumer, buffer, custody, refusals)
            fetching = group.create_task(intake.run(stop), name="intake")
            flushing = group.create_task(flusher.run(), name="flusher")
            await corrections.synced()
            yield Past(bus, store, corrections, bucket, backfills, figures, stop)
            stop.set()
            store.open.set()
            await flushing
            for task in (following, fetching):
                task.cancel()
