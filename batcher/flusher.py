"""Batches into the store: insert, then say so, then ack. Bad frames are bisected out.

Four batches are under way at most, each at another stage: one is answered for, one inserted, one
built, one collected in the buffer. So the store's time is spent inserting, and memory is bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
import structlog
from tenacity import AsyncRetrying, RetryCallState

from batcher.amendment import View
from batcher.batch import table, token
from batcher.buffer import Buffer, Custody, Held
from batcher.refusals import Refusals
from batcher.telemetry import Instruments
from runtime.bus import Bus
from runtime.clock import Clock
from runtime.errors import OverloadedError, PoisonError, TransientError
from runtime.health import Health
from runtime.retry import forever
from runtime.telemetry import span, thinned
from schemas import subjects
from schemas.codec import encode
from schemas.frames import EnrichedFrame, FramesStored, replay_of
from schemas.units import NS_PER_MS, NS_PER_S

_log = structlog.get_logger("decisec.flusher")

HEALTH_PART = "store"
_MAX_LAGS = 1000
_MAX_MEASURED = 100
"""Lags of one flush that go into the histogram; each costs as much as decoding a frame."""
_ACKS_AT_A_TIME = 64
"""Between so many acks other tasks get their turn, the next insert above all."""
_OVERLOAD_WAIT_S = 1.0
"""An overloaded store gets at least this much peace before the next try."""


class Sink(Protocol):
    """What a flusher needs of the store."""

    async def insert(self, table: str, rows: Any, *, token: str) -> None:
        """As `Store.insert`."""


class Amender(Protocol):
    """What a flusher needs of the corrections."""

    def view(self) -> View:
        """As `Corrections.view`."""

    async def passed(self, view: View, frames: Iterable[EnrichedFrame]) -> bool:
        """As `Corrections.passed`."""


class Rows(Protocol):
    """What a sink inserts: an Arrow table, or what it made of one ahead."""

    @property
    def num_rows(self) -> int:
        """How many there are."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Frames that were taken together, ready for the store.

    Attributes:
        rows: What to insert, or why there is no table of these frames.
        batch_id: Their identity by content.
        began_ns: When they were taken, on the monotonic clock.
        view: The corrections that they were built by.
    """

    held: Sequence[Held]
    rows: Rows | PoisonError
    batch_id: str
    began_ns: int
    view: View


class Flusher:
    """Takes due batches from a buffer until it is closed and empty.

    Args:
        keep_ns: How long the store keeps rows; see `batch.table`.
        encode: Done to each table while another one is inserted; see `Store.encode`.
        corrections: What frames are corrected by.
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
        corrections: Amender,
        encode: Callable[[pa.Table], Rows] = lambda rows: rows,
    ) -> None:
        self._sink = sink
        self._corrections = corrections
        self._encode = encode
        self._buffer = buffer
        self._custody = custody
        self._refusals = refusals
        self._bus = bus
        self._health = health
        self._instruments = instruments
        self._clock = clock
        self._keep_ns = keep_ns
        self._stop = stop
        self._in_hand = 0
        self._answering: asyncio.Task[None] | None = None

    @property
    def in_hand(self) -> int:
        """Batches taken from the buffer and not stored yet: two at most."""
        return self._in_hand

    async def run(self) -> None:
        """Flush batch after batch; returns once the buffer is closed and empty.

        Raises:
            FatalError: The store refuses this user, or its tables are not the expected ones.
        """
        ahead = asyncio.create_task(self._ahead(), name="flusher-ahead")
        try:
            while batch := await ahead:
                ahead = asyncio.create_task(self._ahead(), name="flusher-ahead")
                await self._store(batch)
                self._count(-1)
                # Whoever holds a batch holds up what is to be done once its view is out of use.
                del batch
        except TransientError as error:
            # Only after `stop`: until then a transient error is retried.
            await self._answered()
            _log.warning("batch.abandoned", frames=len(self._custody), error=str(error))
        finally:
            ahead.cancel()
            await asyncio.wait({ahead})
            await self._answered()
            self._count(-self._in_hand)

    async def _ahead(self) -> Batch | None:
        """The next batch, built; None once the buffer is closed and empty."""
        held = await self._buffer.take()
        if not held:
            return None
        self._count(1)
        return await self._built(held)

    async def _built(self, held: Sequence[Held]) -> Batch:
        began_ns = self._clock.monotonic_ns()
        with span("build metrics.enriched.{host}", attributes={"frames": len(held)}):
            return await asyncio.to_thread(self._build, held, began_ns, self._corrections.view())

    def _build(self, held: Sequence[Held], began_ns: int, view: View) -> Batch:
        frames, mark = view.amend([one.frame for one in held])
        rows: Rows | PoisonError
        try:
            rows = self._encode(table(frames, now_ns=self._clock.wall_ns(), keep_ns=self._keep_ns))
        except PoisonError as error:
            rows = error
        return Batch(held, rows, token(frames) + mark, began_ns, view)

    async def _store(self, batch: Batch) -> None:
        """Store a batch, whole or in halves until only frames that cannot be stored are left.

        Raises:
            TransientError: The store is away and `stop` is set.
            FatalError: As `run`.
        """
        parts = [batch]
        while parts:
            part = parts.pop()
            held = part.held
            try:
                rows = await self._insert_in_turn(part)
            except PoisonError as error:
                if len(held) == 1:
                    await self._refusals.refuse(held[0].delivery, error.reason, str(error))
                    continue
                _log.warning("batch.split", frames=len(held), reason=error.reason, error=str(error))
                middle = len(held) // 2
                parts += [await self._built(held[middle:]), await self._built(held[:middle])]
                continue
            stored_at_ns = self._clock.wall_ns()
            seconds = (self._clock.monotonic_ns() - part.began_ns) / NS_PER_S
            await self._answered()
            # Its rows are let go of: only the answers remain, beside the next insert.
            self._answering = asyncio.create_task(
                self._answer(part, rows, stored_at_ns, seconds),
                name="flusher-answers",
            )

    async def _insert_in_turn(self, batch: Batch) -> int:
        """One batch at a time, in the order in which they were taken; returns its rows.

        Raises:
            PoisonError: It cannot be stored as it is.
            TransientError, FatalError: As `_store`.
        """
        if isinstance(batch.rows, PoisonError):
            raise batch.rows
        if batch.rows.num_rows:
            with span("store metrics.enriched.{host}", attributes={"frames": len(batch.held)}):
                async for attempt in self._patience():
                    with attempt:
                        await self._insert(batch.rows, batch.batch_id)
        return batch.rows.num_rows

    async def _insert(self, rows: Rows, batch_id: str) -> None:
        began_ns = self._clock.monotonic_ns()
        try:
            await self._sink.insert("samples", rows, token=batch_id)
        except TransientError as error:
            self._instruments.retried(error)
            self._health.unready(HEALTH_PART, str(error))
            raise
        self._buffer.pace(self._clock.monotonic_ns() - began_ns)
        self._health.ready(HEALTH_PART)

    def _patience(self) -> AsyncRetrying:
        policy = forever("store-insert")
        backoff = policy.wait

        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            least = _OVERLOAD_WAIT_S if isinstance(error, OverloadedError) else 0.0
            return max(least, backoff(state))

        return policy.copy(wait=wait, stop=lambda _: self._stop.is_set())

    async def _corrected(self, batch: Batch) -> None:
        """Return once what the batch holds is stored by every correction that was written.

        Raises:
            TransientError: Nobody can say, and `stop` is set.
            FatalError: As `run`.
        """
        policy = forever("corrections-asked").copy(stop=lambda _: self._stop.is_set())
        async for attempt in policy:
            with attempt:
                while await self._corrections.passed(batch.view, [h.frame for h in batch.held]):
                    batch = await self._built(batch.held)
                    await self._insert_in_turn(batch)

    async def _answer(self, batch: Batch, rows: int, stored_at_ns: int, seconds: float) -> None:
        """Ack what the store has said yes to, and tell of it."""
        try:
            await self._corrected(batch)
        except TransientError as error:
            # Only after `stop`: the frames come again after the next start.
            _log.warning("batch.unanswered", frames=len(batch.held), error=str(error))
            return
        held, batch_id = batch.held, batch.batch_id
        frames = [one.frame for one in held]
        size = sum(len(one.delivery.data) for one in held)
        lags_ms = [
            (stored_at_ns - one.frame.sampled_at_ns) // NS_PER_MS
            for one in held
            if not replay_of(one.delivery.headers)
        ]
        self._instruments.stored(rows=rows, frames=len(frames), size=size, seconds=seconds)
        self._instruments.lagged(thinned(lags_ms, _MAX_MEASURED))
        for number, one in enumerate(held):
            if number % _ACKS_AT_A_TIME == 0:
                await asyncio.sleep(0)
            await self._custody.ack(one.delivery)
        await self._announce(frames, batch_id, rows, stored_at_ns, lags_ms)
        _log.debug(
            "batch.flushed", batch_id=batch_id[:16], rows=rows, frames=len(frames),
            size_bytes=size, seconds=round(seconds, 4), lag_max_ms=max(lags_ms, default=None),
        )  # fmt: skip

    async def _answered(self) -> None:
        """Return once all that was stored so far has its answers."""
        answering, self._answering = self._answering, None
        if answering is not None:
            await answering

    def _count(self, change: int) -> None:
        self._in_hand += change
        self._instruments.in_hand(self._in_hand)

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


def newest(frames: Sequence[EnrichedFrame]) -> dict[str, int]:
    """The newest tick of each host, Unix ms."""
    ticks: dict[str, int] = {}
    for frame in frames:
        ticks[frame.host] = max(ticks.get(frame.host, 0), frame.tick_ms)
    return ticks
