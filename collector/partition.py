"""One part of the raw frames, worked at: what is decided about them is carried out here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import NamedTuple, TypeAlias

import structlog
from opentelemetry.trace import SpanKind

from collector.adjustments import Adjustment, Adjustments
from collector.claims import Claims, claimed_ms
from collector.expected import Expected
from collector.losses import Losses
from collector.messages import Intake, Now, Outcome, event_message
from collector.parting import parting
from collector.pipeline import Pipeline, Rules
from collector.specs import SpecIndex
from collector.telemetry import Instruments
from runtime.acks import Stored
from runtime.bus import Bus
from runtime.clock import Clock
from runtime.consumer import Delivery, floor_of, info_of
from runtime.errors import PoisonError, TransientError
from runtime.pinned import PinnedConsumer
from runtime.publisher import Outgoing, Publisher, Result
from runtime.telemetry import span
from schemas import subjects
from schemas.frames import replay_of
from schemas.replays import retry_of
from schemas.units import NS_PER_S

_log = structlog.get_logger("decisec.collector")

_WATCH_S = 0.1
_BUSY_NS = NS_PER_S // 2
"""A batch that takes longer keeps frames waiting, and so does a process that has no CPU or is
stopped; silence says nothing about hosts then."""
_NO_END = 2**63
_AGAIN_S = 0.1
"""A frame that waits for a VM's record comes again this soon."""


Failure: TypeAlias = TransientError | PoisonError | None


class Unit(NamedTuple):
    """What one collector at a time works at.

    Attributes:
        durable: Name of its consumer.
        filter_subject: Its frames.
        tells_of: Whether a host's silence is to be told here.
        partitions: How the stream was parted when this was decided.
        others_until: Up to this place in the stream, all frames here of hosts that are not told of
            may be; their later ones went elsewhere.
        mixed_until: Up to this place in the stream, frames of one host may lie with several units:
            their numbers show no gap.
    """

    durable: str
    filter_subject: str
    tells_of: Callable[[str], bool]
    partitions: int
    others_until: int = 0
    mixed_until: int = 0


@dataclass(frozen=True, slots=True)
class Tools:
    """What the partitions of a process share.

    Attributes:
        lost_after_ns: A host that is silent for so long is declared lost; 0 for never.
    """

    bus: Bus
    rules: Rules
    specs: SpecIndex
    losses: Losses
    expected: Expected
    lost_after_ns: int
    publisher: Publisher
    instruments: Instruments
    clock: Clock
    max_batch: int
    max_ack_pending: int
    ack_wait_s: float


class Partition:
    """Works at one unit as long as the server gives it frames of it.

    A raw frame is acked only after its good rows stand in `METRICS_ENRICHED` and its bad ones in
    `METRICS_REJECTED`.

    Attributes:
        unit: Which one.
        claims: What its hosts claim of themselves.
        pipeline: What is known of its hosts. Once others may have worked at the unit this is a
            new one: what it knew would make false gaps of the frames that they had.
    """

    def __init__(self, unit: Unit, tools: Tools) -> None:
        self.unit = unit
        self.pipeline = self._fresh(tools, unit)
        self.claims = Claims()
        self._tools = tools
        self._clock = tools.clock
        self._instruments = tools.instruments
        self._tenure = 0
        self._busy_since_ns: int | None = None
        # What is not acknowledged in time comes again: long before that all is told.
        self._adjustments = Adjustments(
            tools.losses,
            hold_ns=int(tools.ack_wait_s * NS_PER_S / 3),
            most=max(1, tools.max_ack_pending // 4),
        )
        self._consumer = PinnedConsumer(
            tools.bus,
            subjects.METRICS_RAW,
            unit.durable,
            unit.filter_subject,
            max_batch=tools.max_batch,
            max_ack_pending=tools.max_ack_pending,
            ack_wait_s=tools.ack_wait_s,
        )

    @property
    def pinned(self) -> bool:
        """Whether frames come here, and to no other collector."""
        return self._consumer.pinned

    async def ack_floor(self) -> int:
        """The place in `METRICS_RAW` up to which all frames of this unit are answered.

        Raises:
            TransientError: The server did not say.
        """
        return floor_of(await info_of(self._tools.bus, subjects.METRICS_RAW, self.unit.durable))

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; then finish the batch in hand and return."""
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._watch(), name=f"silence-{self.unit.durable}")
            async for batch in self._consumer.batches(stop):
                if self._consumer.tenure != self._tenure:
                    self._take_over()
                await self._handle(batch)
            watching.cancel()
        await self._tell(self._adjustments.rest())

    def _take_over(self) -> None:
        self._tenure = self._consumer.tenure
        self.pipeline = self._fresh(self._tools, self.unit)
        self.claims = Claims()
        self._adjustments.rest()  # others may have been given it, and tell of it
        self._instruments.taken_over()
        _log.info("partition.taken_over", consumer=self.unit.durable)

    @staticmethod
    def _fresh(tools: Tools, unit: Unit) -> Pipeline:
        return Pipeline(
            tools.rules,
            tools.specs,
            tells_of=unit.tells_of,
            others_until=unit.others_until,
            mixed_until=unit.mixed_until,
        )

    async def _handle(self, batch: Sequence[Delivery]) -> None:
        """Decide about a batch, publish all that follows from it, ack what is published."""
        self._busy_since_ns = began_ns = self._clock.monotonic_ns()
        with span(
            "process metrics.raw.{host}",
            kind=SpanKind.CONSUMER,
            attributes={"messaging.batch.message_count": len(batch)},
        ):
            outcomes = await self._decided(batch)
            for delivery, outcome in outcomes:
                if outcome.claim is not None:
                    self.claims.note(*outcome.claim, delivery.sequence)
            passed = await self._carry_out(outcomes)
        self._busy_since_ns = None
        self._instruments.passed(passed)
        self._instruments.batch((self._clock.monotonic_ns() - began_ns) / NS_PER_S)
        if rejected := _rejected(outcomes):
            _log.warning("samples.rejected", **rejected)

    async def _decided(self, batch: Sequence[Delivery]) -> list[tuple[Delivery, Outcome]]:
        opened = self.pipeline.gaps.opened
        outcomes = self._decide(batch)
        if self.pipeline.gaps.opened == opened or not await self._parted_anew():
            return outcomes
        # What seems to be missing went to another partition, before this process heard of that.
        self.pipeline = self._fresh(self._tools, self.unit._replace(mixed_until=_NO_END))
        return self._decide(batch)

    def _decide(self, batch: Sequence[Delivery]) -> list[tuple[Delivery, Outcome]]:
        return [
            (delivery, self.pipeline.process(_intake(delivery), self._now())) for delivery in batch
        ]

    async def _parted_anew(self) -> bool:
        try:
            return (await parting(self._tools.bus)).partitions != self.unit.partitions
        except TransientError as error:
            _log.debug("parting.unknown", error=str(error))
            return False

    async def _watch(self) -> None:
        """Say which hosts have stopped sending, until cancelled."""
        looked_ns = self._clock.monotonic_ns()
        while True:
            await asyncio.sleep(_WATCH_S)
            await self._tell(self._adjustments.due(self._clock.monotonic_ns()))
            now = self._now()
            busy_since_ns = self._busy_since_ns
            busy = busy_since_ns is not None and now.monotonic_ns - busy_since_ns > _BUSY_NS
            stood_still = now.monotonic_ns - looked_ns > _BUSY_NS
            looked_ns = now.monotonic_ns
            if busy or stood_still or not self.pinned or not self._tools.bus.connected:
                self.pipeline.silence.deafened(now.monotonic_ns)
                continue
            [error] = await self._publish([self.pipeline.watch(now)])
            if error is not None:
                _log.warning("event.not_published", error=str(error))

    async def _tell(self, several: Sequence[Adjustment]) -> None:
        """Tell of frames that came late or back, then answer for them; the rest comes again."""
        now = datetime.fromtimestamp(self._clock.wall_ns() / NS_PER_S, UTC)
        events = [one.event(now) for one in several]
        told = await self._publish([[event_message(event)] for event in events])
        for one, event, error in zip(several, events, told, strict=True):
            try:
                if error is not None:
                    raise error
                for delivery in one.deliveries:
                    await delivery.ack()
            except (TransientError, PoisonError) as failure:
                _log.warning("event.not_published", error=str(failure))
            else:
                _log.warning(
                    "metering.adjusted", host=event.host_id, frames=event.frames, rows=event.rows,
                    cause=event.cause, replay=event.replay_id,
                )  # fmt: skip

    async def _carry_out(self, outcomes: Sequence[tuple[Delivery, Outcome]]) -> list[Outcome]:
        """Publish all that follows from a batch, answer its frames; returns what is done."""
        tried = await self._publish([outcome.side for _, outcome in outcomes])
        enriched = await self._publish(
            [
                [outcome.enriched] if outcome.enriched and error is None else []
                for (_, outcome), error in zip(outcomes, tried, strict=True)
            ]
        )
        passed: list[Outcome] = []
        for (delivery, outcome), *errors in zip(outcomes, tried, enriched, strict=True):
            try:
                for error in errors:
                    if error is not None:
                        raise error
                if outcome.wait:
                    self._instruments.waited()
                    await delivery.nak(_AGAIN_S)
                    continue
                if not self._adjustments.hold(delivery, outcome, self._now()):
                    await delivery.ack()
            except (TransientError, PoisonError) as error:
                # Unanswered, it is delivered again; what of it is stored already is stored once.
                self._instruments.postponed()
                _log.warning("frame.postponed", sequence=delivery.sequence, error=str(error))
            else:
                passed.append(outcome)
        return passed

    async def _publish(self, each: Sequence[Sequence[Outgoing]]) -> list[Failure]:
        """Store the messages of many frames; for each frame what went wrong first, or None."""
        messages = [message for some in each for message in some]
        if not messages:
            return [None] * len(each)
        results = iter(await self._tools.publisher.publish_all(messages))
        return [_first_failure(list(islice(results, len(some)))) for some in each]

    def _now(self) -> Now:
        return Now(self._clock.wall_ns(), self._clock.monotonic_ns())


def _intake(delivery: Delivery) -> Intake:
    return Intake(
        subject=delivery.subject,
        data=delivery.data,
        stream=delivery.stream,
        sequence=delivery.sequence,
        redelivered=delivery.attempts > 1,
        replay=replay_of(delivery.headers),
        complete_ms=claimed_ms(delivery.headers),
        retry=retry_of(delivery.headers),
    )


def _first_failure(results: Sequence[Result]) -> Failure:
    return next((result for result in results if not isinstance(result, Stored)), None)


def _rejected(outcomes: Sequence[tuple[Delivery, Outcome]]) -> dict[str, int]:
    """Rows refused in a batch, by reason: one log line for all."""
    total: dict[str, int] = {}
    for _, outcome in outcomes:
        for reason, rows in outcome.rejected.items():
            total[reason] = total.get(reason, 0) + rows
    return total
