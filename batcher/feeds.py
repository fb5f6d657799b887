"""Events out of their streams into their tables, by the same rule as frames: ack after the yes.

A message that is no event is left out with a word in the log and a count, and never holds up the
rest; it stays in its stream, at the place that the log names.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass

import structlog

from batcher.buffer import Batches, Custody, Limits
from batcher.records import Feed, Row
from batcher.stages import Sink
from batcher.telemetry import Instruments
from runtime.bus import Bus
from runtime.clock import Clock
from runtime.consumer import Consumer, Delivery
from runtime.errors import PoisonError, TransientError
from runtime.retry import forever
from schemas.errors import MalformedMessageError

_log = structlog.get_logger("decisec.feeds")

_LIMITS = Limits(rows=1000, size=4 * 1024 * 1024, age_ms=500)
_ACK_WAIT_S = 15.0
_RENEW_EVERY_S = 2.0


@dataclass(frozen=True, slots=True)
class Entry:
    """A message and its row."""

    delivery: Delivery
    row: Row

    @property
    def rows(self) -> int:
        """One."""
        return 1

    @property
    def size(self) -> int:
        """Bytes of the message."""
        return len(self.delivery.data)


class Feeder:
    """Keeps one table fed from one stream."""

    def __init__(
        self, bus: Bus, sink: Sink, feed: Feed, instruments: Instruments, clock: Clock
    ) -> None:
        self._sink = sink
        self._feed = feed
        self._instruments = instruments
        self._custody = Custody(clock, renew_after_s=_ACK_WAIT_S / 3)
        self._buffer: Batches[Entry] = Batches(_LIMITS, clock)
        self._consumer = Consumer(
            bus,
            feed.stream,
            feed.durable,
            filter_subjects=feed.filter_subjects,
            max_batch=256,
            max_ack_pending=4 * _LIMITS.rows,
            ack_wait_s=_ACK_WAIT_S,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Fetch and store until `stop` is set; then store what was fetched.

        What a store that is away then does not take comes again after the next start.

        Raises:
            FatalError: The store refuses this user, or its tables are not the expected ones.
        """
        if not await self._ready(stop):
            return
        async with asyncio.TaskGroup() as group:
            fetching = group.create_task(self._fetch(stop), name=f"fetch-{self._feed.table}")
            renewing = group.create_task(self._renew(), name=f"renew-{self._feed.table}")
            try:
                while batch := await self._buffer.take():
                    await self._store(batch, stop)
            except TransientError as error:
                # Only after `stop`: until then a transient error is retried.
                _log.warning("events.abandoned", held=len(self._custody), error=str(error))
            fetching.cancel()
            renewing.cancel()

    async def _ready(self, stop: asyncio.Event) -> bool:
        """Wait for the stream, for as long as `stop` is not set."""
        async with asyncio.TaskGroup() as group:
            ensuring = group.create_task(self._consumer.ensure(), name="feed-consumer")
            stopping = group.create_task(stop.wait(), name="feed-stop")
            await asyncio.wait({ensuring, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            ensuring.cancel()
        return not stop.is_set()

    async def _fetch(self, stop: asyncio.Event) -> None:
        try:
            async with aclosing(self._consumer.batches(stop)) as batches:  # type: ignore[type-var]
                async for batch in batches:
                    for delivery in [d for d in batch if self._custody.take(d)]:
                        await self._take(delivery)
        finally:
            self._buffer.close()

    async def _take(self, delivery: Delivery) -> None:
        try:
            row = self._feed.read(delivery)
        except (MalformedMessageError, PoisonError) as error:
            await self._leave_out(delivery, error.reason, str(error))
            return
        await self._buffer.put(Entry(delivery, row))

    async def _store(self, batch: Sequence[Entry], stop: asyncio.Event) -> None:
        """Store a batch, whole or in halves until only what cannot be stored is left."""
        parts = [batch]
        while parts:
            part = parts.pop()
            try:
                await self._insert(part, stop)
            except PoisonError as error:
                if len(part) == 1:
                    await self._leave_out(part[0].delivery, error.reason, str(error))
                else:
                    parts += [part[len(part) // 2 :], part[: len(part) // 2]]
                continue
            self._instruments.events_stored(self._feed.table, len(part))
            for entry in part:
                await self._custody.ack(entry.delivery)

    async def _insert(self, part: Sequence[Entry], stop: asyncio.Event) -> None:
        try:
            # The first table made of Python's own objects loads pandas, which takes a second.
            rows = await asyncio.to_thread(self._feed.rows, [entry.row for entry in part])
        except (ValueError, OverflowError) as error:
            raise PoisonError("not_arrow", str(error)) from error
        policy = forever(f"feed-{self._feed.table}").copy(stop=lambda _: stop.is_set())
        async for attempt in policy:
            with attempt:
                await self._sink.insert(self._feed.table, rows, token=_token(part))

    async def _leave_out(self, delivery: Delivery, reason: str, detail: str) -> None:
        self._instruments.event_refused(self._feed.table, reason)
        _log.error(
            "event.refused", table=self._feed.table, stream=delivery.stream,
            sequence=delivery.sequence, subject=delivery.subject[:200], reason=reason,
            detail=detail[:300],
        )  # fmt: skip
        await self._custody.ack(delivery)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(_RENEW_EVERY_S)
            await self._custody.renew()


def _token(part: Sequence[Entry]) -> str:
    places = "\n".join(f"{e.delivery.stream}/{e.delivery.sequence}" for e in part)
    return hashlib.sha256(places.encode()).hexdigest()
