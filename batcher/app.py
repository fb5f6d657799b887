"""Puts the batcher together and runs it until it is told to stop.

The only room that talks to ClickHouse. It promises: a frame is acked only after the store has it;
storing one twice changes nothing; a frame that cannot be stored is set aside with the reason.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from datetime import timedelta

import structlog

from batcher.archive import Archive
from batcher.audit_log import SUBJECT as AUDIT_SUBJECT
from batcher.audit_log import AuditDoor
from batcher.backfill import Backfills
from batcher.buffer import Buffer, Custody, Limits
from batcher.corrections import Corrections
from batcher.event_door import SUBJECT as EVENTS_SUBJECT
from batcher.event_door import EventDoor
from batcher.feeds import Feeder
from batcher.figures import Figures
from batcher.flusher import Flusher
from batcher.host_usage import HostUsages
from batcher.incarnation_hosts import IncarnationHosts
from batcher.intake import Intake
from batcher.migrations import migrate, shipped
from batcher.mover import Mover
from batcher.priorities import let_merges_wait
from batcher.progress import ProgressKeeper
from batcher.records import FEEDS, VM_EVENTS_DURABLE
from batcher.refusals import Refusals
from batcher.retention import apply_retention
from batcher.series_door import SUBJECT as SERIES_SUBJECT
from batcher.series_door import SeriesDoor
from batcher.settings import BatcherSettings
from batcher.settling import Settler
from batcher.stages import HEALTH_PART
from batcher.store import Store, keep_temporary_files_beside
from batcher.store_door import SUBJECT as STORE_SUBJECT
from batcher.store_door import StoreDoor
from batcher.telemetry import Instruments
from batcher.usage_door import QUEUE, SUBJECT, UsageDoor
from batcher.watermark import Watermark, decode_placed
from batcher.windows import Retention
from batcher.windows_door import SUBJECT as WINDOWS_SUBJECT
from batcher.windows_door import WindowsDoor
from runtime.buckets import Bucket
from runtime.clock import SystemClock
from runtime.consumer import Consumer
from runtime.errors import TransientError
from runtime.health import Health
from runtime.memory import spare_the_collector
from runtime.publisher import Publisher
from runtime.retry import forever
from runtime.service import Service
from schemas import subjects
from schemas.corrections import decode_vm_corrections
from schemas.hosts import decode_host_loss

_log = structlog.get_logger("decisec.batcher")

DURABLE = "batcher"
_ACK_WAIT_S = 10.0
"""After a crash the next batcher gets the frames again this late; who lives renews in time."""
_MAX_ACK_PENDING = 100_000
"""Four batches of small frames are in hand at once, and two of those that wait for their hours, in
each of several batchers."""
_FETCH = 256
_RENEW_EVERY_S = 1.0
_PENDING_EVERY_S = 2.0


async def main(service: Service[BatcherSettings]) -> None:
    """Run until `service.stop` is set; then flush what was fetched, ack it and return.

    Raises:
        SettingsError: The store's address is wrong or missing.
        FatalError: The store refuses this user, or its schema is not this version's.
    """
    settings = service.settings
    settings.check()
    # It logs a traceback per failed request, and the retry policy reports each anyhow.
    logging.getLogger("clickhouse_connect").setLevel(logging.ERROR)
    clock = SystemClock()
    instruments = Instruments()
    async with AsyncExitStack() as stack:
        if settings.embedded:
            keep_temporary_files_beside(settings.store_path)
        store = Store(settings)
        stack.push_async_callback(store.close)
        reader = store
        if not settings.embedded:
            # A server takes queries beside inserts; a slow one then holds nothing up.
            reader = Store(settings, name="usage")
            stack.push_async_callback(reader.close)
        retention = await _prepare(store, settings, service.health, service.stop)
        if retention is None:
            return
        corrections = Corrections(Bucket(service.bus, subjects.CORRECTIONS, decode_vm_corrections))
        watermark = Watermark(
            reader,
            Bucket(service.bus, subjects.VM_SPECS, decode_placed),
            Bucket(service.bus, subjects.LOST_HOSTS, decode_host_loss),
            clock,
            corrections=corrections,
            margin_ms=settings.complete_margin_s * 1000,
        )
        custody = Custody(clock, renew_after_s=_ACK_WAIT_S / 2)
        refusals = Refusals(Publisher(service.bus), custody, instruments)
        buffer = Buffer(
            Limits(settings.flush_rows, settings.flush_bytes, settings.flush_age_ms), clock
        )
        consumer = Consumer(
            service.bus,
            subjects.METRICS_ENRICHED,
            DURABLE,
            max_batch=_FETCH,
            max_ack_pending=_MAX_ACK_PENDING,
            ack_wait_s=_ACK_WAIT_S,
        )
        sink = IncarnationHosts(store)
        flusher = Flusher(
            sink=sink,
            rollups=store,
            buffer=buffer,
            custody=custody,
            refusals=refusals,
            bus=service.bus,
            health=service.health,
            instruments=instruments,
            clock=clock,
            keep_ns=int(retention.ticks / timedelta(microseconds=1)) * 1000,
            stop=service.stop,
            corrections=corrections,
            encode=sink.encode,
            encode_rollups=store.encode,
        )
        archive = Archive(
            reader, watermark, retention, clock, settings.query_limit_s, flusher.rolled_until_ms
        )
        door = UsageDoor(archive, instruments)
        subscription = await service.bus.subscribe(SUBJECT, door.answer, queue=QUEUE)
        publisher, figures = Publisher(service.bus), Figures(reader)
        backfills = Backfills(figures, corrections, watermark.placements, publisher, clock)
        store_door = StoreDoor(
            reader, retention, service.bus, clock, backfills, HostUsages(archive)
        )
        await service.bus.subscribe(STORE_SUBJECT, store_door.answer, queue=QUEUE)
        audit_door = AuditDoor(reader, limit_s=settings.query_limit_s)
        await service.bus.subscribe(AUDIT_SUBJECT, audit_door.answer, queue=QUEUE)
        for subject, kind in ((WINDOWS_SUBJECT, WindowsDoor), (SERIES_SUBJECT, SeriesDoor)):
            await service.bus.subscribe(subject, kind(archive).answer, queue=QUEUE)
        event_door = EventDoor(
            reader, service.bus, VM_EVENTS_DURABLE, limit_s=settings.query_limit_s
        )
        await service.bus.subscribe(EVENTS_SUBJECT, event_door.answer, queue=QUEUE)
        spare_the_collector()
        async with asyncio.TaskGroup() as group:
            progress = ProgressKeeper(store, custody, refusals, consumer.ack_floor)
            intake = Intake(consumer, buffer, custody, refusals, progress)
            fetching = group.create_task(intake.run(service.stop), name="intake")
            renewing = group.create_task(_renew(custody), name="renewal")
            watching = group.create_task(_watch(consumer, instruments), name="pending")
            yielding = group.create_task(_let_merges_wait(), name="priorities")
            for feed in FEEDS:
                feeder = Feeder(service.bus, store, feed, instruments, clock)
                group.create_task(feeder.run(service.stop), name=f"feed-{feed.table}")
            noting = group.create_task(progress.run(), name="progress")
            following = group.create_task(watermark.run(), name="watermark")
            correcting = group.create_task(corrections.run(), name="corrections")
            settler = Settler(Mover(reader), figures, corrections, publisher)
            settling = group.create_task(settler.run(), name="settling")
            await flusher.run()
            for task in (
                fetching, renewing, watching, yielding, noting, following, correcting, settling,
            ):  # fmt: skip
                task.cancel()
        if service.bus.connected:
            await subscription.unsubscribe()


async def _prepare(
    store: Store, settings: BatcherSettings, health: Health, stop: asyncio.Event
) -> Retention | None:
    """Open the store and bring its schema up to date; None if told to stop before that."""
    health.unready(HEALTH_PART, "not opened yet")
    policy = forever("store-open").copy(stop=lambda _: stop.is_set())
    try:
        async for attempt in policy:
            with attempt:
                born = await migrate(store, shipped())
                retention = await apply_retention(store, settings, born)
    except TransientError as error:
        _log.warning("store.never_opened", error=str(error))
        return None
    health.ready(HEALTH_PART)
    return retention


async def _renew(custody: Custody) -> None:
    while True:
        await asyncio.sleep(_RENEW_EVERY_S)
        await custody.renew()


async def _let_merges_wait() -> None:
    while True:
        let_merges_wait()
        await asyncio.sleep(_PENDING_EVERY_S)


async def _watch(consumer: Consumer, instruments: Instruments) -> None:
    while True:
        await asyncio.sleep(_PENDING_EVERY_S)
        try:
            instruments.pending(await consumer.pending())
        except TransientError as error:
            _log.debug("pending.unknown", error=str(error))
