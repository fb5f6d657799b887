"""Batches into the store: insert, then say so, then ack. Bad frames are bisected out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import pyarrow as pa
import structlog
from tenacity import AsyncRetrying, RetryCallState

from batcher.batch import table, token
from batcher.buffer import Buffer, Custody, Held
from batcher.refusals import Refusals
from batcher.telemetry import Instruments
from runtime.bus import Bus
from runtime.clock import Clock
from runtime.errors import OverloadedError, PoisonError, TransientError
from runtime.health import Health
from runtime.retry import forever
from runtime.telemetry import span
from schemas import subjects
from schemas.codec import encode
from schemas.frames import EnrichedFrame, FramesStored, replay_of
from schemas.units import NS_PER_MS, NS_PER_S

_log = structlog.get_logger("decisec.flusher")

HEALTH_PART = "store"
_MAX_LAGS = 1000
_OVERLOAD_WAIT_S = 1.0
"""An overloaded store gets at least this much peace before the next try."""


class Sink(Protocol):
    """What a flusher needs of the store."""

    async def insert(self, table: str, rows: pa.Table, *, token: str) -> None:
        """As `Store.insert`."""


class Flusher:
    """Takes due batches from a buffer until it is closed and empty.

    Args:
        keep_ns: How long the store keeps rows; see `batch.table`.
        stop: Once set, a store that is away is no longer waited for: what it did not take is left
            unanswered, and comes again after the next start.
    """

    def __init__(
        self,
        *,
        sink: Sink,
        buffer: Buffer,
        custody: Custody,
        refusals: Refusals,
        bus: Bus,
        health: Health,
        instruments: Instruments,
        clock: Clock,
        keep_ns: int,
        stop: asyncio.Event,
    ) -> None:
        self._sink = sink
        self._buffer = buffer
        self._custody = custody
        self._refusals = refusals
        self._bus = bus
        self._health = health
        self._instruments = instruments
        self._clock = clock
        self._keep_ns = keep_ns
        self._stop = stop

    async def run(self) -> None:
        """Flush batch after batch; returns once the buffer is closed and empty.

        Raises:
            FatalError: The store refuses this user, or its tables are not the expected ones.
        """
        while batch := await self._buffer.take():
            try:
                await self.flush(batch)
            except TransientError as error:
                # Only after `stop`: until then a transient error is retried.
                _log.warning("batch.abandoned", frames=len(self._custody), error=str(error))
                return

    async def flush(self, batch: Sequence[Held]) -> None:
        """Store a batch, whole or in halves until only frames that cannot be stored are left.

        Raises:
            TransientError: The store is away and `stop` is set.
            FatalError: As `run`.
        """
        parts = [batch]
        while parts:
            part = parts.pop()
            try:
                await self._store_part(part)
            except PoisonError as error:
                if len(part) == 1:
                    await self._refusals.refuse(part[0].delivery, error.reason, str(error))
                    continue
                _log.warning("batch.split", frames=len(part), reason=error.reason, error=str(error))
                middle = len(part) // 2
                parts += [part[middle:], part[:middle]]

    async def _store_part(self, part: Sequence[Held]) -> None:
        frames = [held.frame for held in part]
        began_ns = self._clock.monotonic_ns()
        with span("store metrics.enriched.{host}", attributes={"frames": len(frames)}):
            rows = await asyncio.to_thread(
                table, frames, now_ns=self._clock.wall_ns(), keep_ns=self._keep_ns
            )
            batch_id = token(frames)
            if rows.num_rows:
                async for attempt in self._patience():
                    with attempt:
                        await self._insert(rows, batch_id)
        stored_at_ns = self._clock.wall_ns()
        seconds = (self._clock.monotonic_ns() - began_ns) / NS_PER_S
        size = sum(len(held.delivery.data) for held in part)
        lags_ms = [
            (stored_at_ns - held.frame.sampled_at_ns) // NS_PER_MS
            for held in part
            if not replay_of(held.delivery.headers)
        ]
        self._instruments.stored(rows=rows.num_rows, frames=len(frames), size=size, seconds=seconds)
        self._instruments.lagged(lags_ms)
        for held in part:
            await self._custody.ack(held.delivery)
        await self._announce(frames, batch_id, rows.num_rows, stored_at_ns, lags_ms)
        _log.debug(
            "batch.flushed", batch_id=batch_id[:16], rows=rows.num_rows, frames=len(frames),
            size_bytes=size, seconds=round(seconds, 4), lag_max_ms=max(lags_ms, default=None),
        )  # fmt: skip

    async def _insert(self, rows: pa.Table, batch_id: str) -> None:
        try:
            await self._sink.insert("samples", rows, token=batch_id)
        except TransientError as error:
            self._instruments.retried(error)
            self._health.unready(HEALTH_PART, str(error))
            raise
        self._health.ready(HEALTH_PART)

    def _patience(self) -> AsyncRetrying:
        policy = forever("store-insert")
        backoff = policy.wait

        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            least = _OVERLOAD_WAIT_S if isinstance(error, OverloadedError) else 0.0
            return max(least, backoff(state))

        return policy.copy(wait=wait, stop=lambda _: self._stop.is_set())

    async def _announce(
        self,
        frames: Sequence[EnrichedFrame],
        batch_id: str,
        rows: int,
        stored_at_ns: int,
        lags_ms: Sequence[int],
    ) -> None:
        message = FramesStored(
            batch_id=batch_id,
            rows=rows,
            frames=len(frames),
            stored_at_ns=stored_at_ns,
            lags_ms=thinned(lags_ms, _MAX_LAGS),
            ticks_ms=newest(frames),
        )
        try:
            await self._bus.publish(subjects.METRICS_STORED, encode(message))
        except TransientError as error:
            # Nobody bills from this message; those who wait for it ask again.
            _log.warning("batch.announcement_failed", batch_id=batch_id, error=str(error))


def thinned(values: Sequence[int], most: int) -> tuple[int, ...]:
    """At most `most` of the values, evenly spread, the first one included."""
    if len(values) <= most:
        return tuple(values)
    return tuple(values[i * len(values) // most] for i in range(most))


def newest(frames: Sequence[EnrichedFrame]) -> dict[str, int]:
    """The newest tick of each host, Unix ms."""
    ticks: dict[str, int] = {}
    for frame in frames:
        ticks[frame.host] = max(ticks.get(frame.host, 0), frame.tick_ms)
    return ticks
