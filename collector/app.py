"""Puts the collector together and runs it until it is told to stop.

It promises: a raw frame is acked only after its good rows stand in `METRICS_ENRICHED` and its bad
ones in `METRICS_REJECTED`, each under an id of its content: doing it twice is doing it once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog
from opentelemetry.trace import SpanKind

from collector.checks import CpuLimit
from collector.claims import Claims, claimed_ms
from collector.messages import Intake, Now, Outcome, Outgoing
from collector.pipeline import Pipeline, Rules
from collector.progress import Progress
from collector.settings import CollectorSettings
from collector.silence import SilenceLimits
from collector.telemetry import Instruments
from runtime.buckets import Bucket, Mirror
from runtime.bus import Bus
from runtime.clock import Clock, SystemClock
from runtime.consumer import Consumer, Delivery
from runtime.errors import PoisonError, TransientError
from runtime.publisher import Publisher
from runtime.service import Service
from runtime.telemetry import span
from schemas import subjects
from schemas.units import NS_PER_MS, NS_PER_S
from schemas.vms import VmRecord, decode_vm_record

_log = structlog.get_logger("decisec.collector")

DURABLE = "collector"
HEALTH_PART = "vm_specs"
_WATCH_S = 0.1
_BUSY_NS = NS_PER_S // 2
"""A batch that takes longer keeps frames waiting; silence says nothing about hosts then."""
_AGAIN_S = 0.1
"""A frame that waits for a VM's record comes again this soon."""


def rules_of(settings: CollectorSettings) -> Rules:
    """The settings in the pipeline's units."""
    return Rules(
        max_future_ns=_ns(settings.max_future_s),
        unknown_wait_ns=_ns(settings.unknown_wait_s),
        late_tolerance_ms=_ns(settings.late_tolerance_s) // NS_PER_MS,
        cpu=CpuLimit(
            overhead_threads=settings.cpu_overhead_threads,
            tolerance_ns=settings.cpu_tolerance_ms * NS_PER_MS,
        ),
        silence=SilenceLimits(
            _ns(settings.suspect_after_s),
            _ns(settings.silent_after_s),
            _ns(settings.forget_after_s),
        ),
    )


async def main(service: Service[CollectorSettings]) -> None:
    """Run until `service.stop` is set; then finish the batch in hand and return."""
    settings = service.settings
    pipeline = Pipeline(rules_of(settings))
    bucket: Bucket[VmRecord] = Bucket(service.bus, subjects.VM_SPECS, decode_vm_record)
    mirror = Mirror(bucket, pipeline.specs.change)
    consumer = Consumer(
        service.bus,
        subjects.METRICS_RAW,
        DURABLE,
        max_batch=settings.max_batch,
        max_ack_pending=settings.max_ack_pending,
        ack_wait_s=settings.ack_wait_s,
    )
    claims = Claims()
    collector = Collector(service.bus, pipeline, SystemClock(), claims)
    progress = Progress(Publisher(service.bus), DURABLE, claims, consumer.ack_floor)
    service.health.unready(HEALTH_PART, "the VMs' records are not read yet")
    async with asyncio.TaskGroup() as group:
        following = group.create_task(mirror.run(), name="specs")
        synced = group.create_task(mirror.synced(), name="specs-synced")
        stopped = group.create_task(service.stop.wait(), name="stop")
        await asyncio.wait({synced, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if synced.done():
            service.health.ready(HEALTH_PART)
            watching = group.create_task(collector.watch(), name="silence")
            telling = group.create_task(progress.run(), name="progress")
            async for batch in consumer.batches(service.stop):
                await collector.handle(batch)
            watching.cancel()
            telling.cancel()
        for task in (following, synced, stopped):
            task.cancel()


class Collector:
    """Carries out what the pipeline decides."""

    def __init__(self, bus: Bus, pipeline: Pipeline, clock: Clock, claims: Claims) -> None:
        self._bus = bus
        self._pipeline = pipeline
        self._clock = clock
        self._claims = claims
        self._publisher = Publisher(bus)
        self._instruments = Instruments()
        self._busy_since_ns: int | None = None

    async def handle(self, batch: Sequence[Delivery]) -> None:
        """Decide about a batch, publish all that follows from it, ack what is published."""
        self._busy_since_ns = began_ns = self._clock.monotonic_ns()
        with span(
            "process metrics.raw.{host}",
            kind=SpanKind.CONSUMER,
            attributes={"messaging.batch.message_count": len(batch)},
        ):
            outcomes = [
                (delivery, self._pipeline.process(_intake(delivery), self._now()))
                for delivery in batch
            ]
            async with asyncio.TaskGroup() as group:
                for delivery, outcome in outcomes:
                    if outcome.claim is not None:
                        self._claims.note(*outcome.claim, delivery.sequence)
                    group.create_task(
                        self._carry_out(delivery, outcome), name=f"frame-{delivery.sequence}"
                    )
        self._busy_since_ns = None
        self._instruments.batch((self._clock.monotonic_ns() - began_ns) / NS_PER_S)
        self._instruments.state(
            missing=self._pipeline.gaps.missing, hosts=self._pipeline.silence.hosts
        )
        if rejected := _rejected(outcomes):
            _log.warning("samples.rejected", **rejected)

    async def watch(self) -> None:
        """Say which hosts have stopped sending, until cancelled."""
        while True:
            await asyncio.sleep(_WATCH_S)
            now = self._now()
            busy_since_ns = self._busy_since_ns
            busy = busy_since_ns is not None and now.monotonic_ns - busy_since_ns > _BUSY_NS
            if busy or not self._bus.connected:
                self._pipeline.silence.deafened(now.monotonic_ns)
                continue
            events = self._pipeline.watch(now)
            try:
                for event in events:
                    await self._publish(event)
            except TransientError as error:
                _log.warning("event.not_published", error=str(error))

    async def _carry_out(self, delivery: Delivery, outcome: Outcome) -> None:
        try:
            for message in outcome.side:
                await self._publish(message)
            if outcome.wait:
                self._instruments.waited()
                await delivery.nak(_AGAIN_S)
                return
            if outcome.enriched is not None:
                await self._publish(outcome.enriched)
            await delivery.ack()
        except (TransientError, PoisonError) as error:
            # Unanswered, it is delivered again; what of it is stored already is stored once.
            self._instruments.postponed()
            _log.warning("frame.postponed", sequence=delivery.sequence, error=str(error))
        else:
            self._instruments.passed(outcome)

    async def _publish(self, message: Outgoing) -> None:
        await self._publisher.publish(
            message.subject, message.payload, msg_id=message.msg_id, headers=message.headers
        )

    def _now(self) -> Now:
        return Now(self._clock.wall_ns(), self._clock.monotonic_ns())


def _intake(delivery: Delivery) -> Intake:
    return Intake(
        subject=delivery.subject,
        data=delivery.data,
        stream=delivery.stream,
        sequence=delivery.sequence,
        redelivered=delivery.attempts > 1,
        complete_ms=claimed_ms(delivery.headers),
    )


def _rejected(outcomes: Sequence[tuple[Delivery, Outcome]]) -> dict[str, int]:
    """Rows refused in a batch, by reason: one log line for all."""
    total: dict[str, int] = {}
    for _, outcome in outcomes:
        for reason, rows in outcome.rejected.items():
            total[reason] = total.get(reason, 0) + rows
    return total


def _ns(seconds: float) -> int:
    return int(seconds * NS_PER_S)
