"""Batches into the store: insert, then say so, then ack. Bad frames are bisected out.

Some batches are under way at once, each at another stage: some wait for their hours and acks, one
is inserted, one built, one collected in the buffer. So the store's time is spent inserting, and
memory is bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pyarrow as pa
import structlog

from batcher.amendment import View
from batcher.batch import table, token
from batcher.buffer import Buffer, Custody, Held
from batcher.hours import apart, hours
from batcher.refusals import Refusals
from batcher.rolling import Rolling, Unrefusing
from batcher.stages import Amender, Batch, Inserts, Rows, Sink
from batcher.telemetry import Instruments
from runtime.bus import Bus
from runtime.clock import Clock
from runtime.errors import FatalError, PoisonError, TransientError
from runtime.health import Health
from runtime.telemetry import span, thinned
from schemas import subjects
from schemas.codec import encode
from schemas.frames import EnrichedFrame, FramesStored, replay_of
from schemas.units import NS_PER_MS, NS_PER_S

_log = structlog.get_logger("decisec.flusher")

_MAX_LAGS = 1000
_MAX_MEASURED = 100
"""Lags of one flush that go into the histogram; each costs as much as decoding a frame."""


class Flusher:
    """Takes due batches from a buffer until it is closed and empty.

    Args:
        sink: For samples.
        rollups: For their hours.
        keep_ns: How long the store keeps rows; see `batch.table`.
        encode: Done to samples while others are inserted; see `Store.encode`.
        encode_rollups: And to hours.
        corrections: What frames are corrected by.
        stop: Once set, a store that is away is no longer waited for: what it did not take is left
            unanswered, and comes again after the next start.
    """

    def __init__(
        self,
        *,
        sink: Sink,
        rollups: Sink,
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
        encode_rollups: Callable[[pa.Table], Rows] = lambda rows: rows,
    ) -> None:
        self._corrections = corrections
        self._encode = encode
        self._buffer = buffer
        self._custody = custody
        self._refusals = refusals
        self._bus = bus
        self._instruments = instruments
        self._clock = clock
        self._keep_ns = keep_ns
        self._in_hand = 0
        self._telling: asyncio.Task[None] | None = None
        self._inserts, for_rollups = (
            Inserts(one, health=health, instruments=instruments, clock=clock, stop=stop)
            for one in (sink, Unrefusing(rollups))
        )
        self._rolling = Rolling(
            inserts=for_rollups, custody=custody, corrections=corrections, clock=clock, stop=stop,
            again=self._again, encode=encode_rollups,
        )  # fmt: skip

    @property
    def in_hand(self) -> int:
        """Batches taken from the buffer and not stored yet: two at most."""
        return self._in_hand

    def rolled_until_ms(self) -> int | None:
        """Hours and days before this hold all that is stored of samples; None: all of them do."""
        return self._rolling.behind_since_ms

    async def run(self) -> None:
        """Flush batch after batch; returns once the buffer is closed and empty.

        Raises:
            FatalError: The store refuses this user, or its tables are not the expected ones.
                It may come in a group.
        """
        async with asyncio.TaskGroup() as group:
            rolling = group.create_task(self._rolling.run(), name="flusher-rolling")
            failure = await self._flush()
            # What is stored gets its acks, whatever became of the batches behind it.
            self._rolling.close()
            await rolling
        if failure is not None:
            raise failure

    async def _flush(self) -> FatalError | None:
        """As `run`, but for the last stage; returns what ended it before its time."""
        ahead = asyncio.create_task(self._ahead(), name="flusher-ahead")
        try:
            while batch := await ahead:
                ahead = asyncio.create_task(self._ahead(), name="flusher-ahead")
                await self._store(batch)
                self._count(-1)
                # Whoever holds a batch holds up what is to be done once its view is out of use.
                del batch
        except FatalError as error:
            return error
        except TransientError as error:
            # Only after `stop`: until then a transient error is retried.
            _log.warning("batch.abandoned", frames=len(self._custody), error=str(error))
        finally:
            ahead.cancel()
            await asyncio.wait({ahead})
            await self._told()
            self._count(-self._in_hand)
        return None

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
        samples: Rows | PoisonError
        rolled = None
        try:
            rows = table(frames, now_ns=self._clock.wall_ns(), keep_ns=self._keep_ns)
            if rows.num_rows:
                rolled = hours(rows)
            samples = self._encode(apart(rows))
        except PoisonError as error:
            samples = error
        return Batch(held, samples, rolled, token(frames) + mark, began_ns, view)

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
            self._rolling.expect(part)
            try:
                rows = await self._insert(part)
            except PoisonError as error:
                self._rolling.forget(part)
                if len(held) == 1:
                    await self._refusals.refuse(held[0].delivery, error.reason, str(error))
                    continue
                _log.warning("batch.split", frames=len(held), reason=error.reason, error=str(error))
                middle = len(held) // 2
                parts += [await self._built(held[middle:]), await self._built(held[:middle])]
                continue
            stored_at_ns = self._clock.wall_ns()
            seconds = (self._clock.monotonic_ns() - part.began_ns) / NS_PER_S
            await self._told()
            # Beside the next insert.
            self._telling = asyncio.create_task(
                self._tell(held, part.batch_id, rows, stored_at_ns, seconds), name="flusher-tells"
            )
            await self._rolling.put(part)

    async def _insert(self, batch: Batch) -> int:
        """The samples of one batch; returns how many.

        Raises:
            PoisonError: It cannot be stored as it is.
            TransientError, FatalError: As `_store`.
        """
        if isinstance(batch.samples, PoisonError):
            raise batch.samples
        if batch.samples.num_rows:
            with span("store metrics.enriched.{host}", attributes={"frames": len(batch.held)}):
                insert_ns = await self._inserts.insert(
                    "samples", batch.samples, token=batch.batch_id
                )
            self._buffer.pace(insert_ns)
        return batch.samples.num_rows

    async def _again(self, batch: Batch) -> Batch:
        rebuilt = await self._built(batch.held)
        await self._insert(rebuilt)
        return rebuilt

    async def _tell(
        self, held: Sequence[Held], batch_id: str, rows: int, stored_at_ns: int, seconds: float
    ) -> None:
        """Count and announce what can be queried."""
        frames = [one.frame for one in held]
        size = sum(one.size for one in held)
        lags_ms = [
            (stored_at_ns - one.frame.sampled_at_ns) // NS_PER_MS
            for one in held
            if not replay_of(one.delivery.headers)
        ]
        self._instruments.stored(rows=rows, frames=len(frames), size=size, seconds=seconds)
        self._instruments.lagged(thinned(lags_ms, _MAX_MEASURED))
        await self._announce(frames, batch_id, rows, stored_at_ns, lags_ms)
        _log.debug(
            "batch.flushed", batch_id=batch_id[:16], rows=rows, frames=len(frames),
            size_bytes=size, seconds=round(seconds, 4), lag_max_ms=max(lags_ms, default=None),
        )  # fmt: skip

    async def _told(self) -> None:
        """Return once all that was stored so far is announced."""
        telling, self._telling = self._telling, None
        if telling is not None:
            await telling

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
