"""The hours and days of what is stored, then the acks: the last stage.

Frames stay unacknowledged until everything that follows from them is in the store. So whatever dies
in between, they come again, and what is inserted twice is a maximum of itself.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pyarrow as pa
import structlog

from batcher import hours
from batcher.buffer import Batches, Custody, Limits
from batcher.stages import Amender, Batch, Inserts, Rows, Sink
from runtime.clock import Clock
from runtime.errors import PoisonError, TransientError
from runtime.retry import forever

_log = structlog.get_logger("decisec.rolling")

LIMITS = Limits(rows=16_384, size=134_217_728, age_ms=20, most_age_ms=3000, age_to_insert=20)
"""Frames and bytes that may wait for their hours. Those take a twentieth of the store's time, or
come every 3 s where that is oftener."""
_ACKS_AT_A_TIME = 64
"""Between so many acks other tasks get their turn, the next insert above all."""


class Unrefusing:
    """A sink for rows that were made here of samples which the store has taken.

    Nothing is wrong with the frames, so there is nothing to be set aside: an operator has to look
    at the table, and until then it is tried again.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    async def insert(self, table: str, rows: Any, *, token: str) -> None:
        """As `Store.insert`; what would be poison is transient."""
        try:
            await self._sink.insert(table, rows, token=token)
        except PoisonError as error:
            _log.error("hours.refused", table=table, reason=error.reason, error=str(error))
            raise TransientError(f"{table} takes no rows: {error}") from error


class Rolling:
    """Takes stored batches until it is closed and empty.

    Args:
        inserts: For hours.
        again: Builds a batch anew by the corrections of now and stores its samples.
        encode: Done to a table in another thread; see `Store.encode`.
    """

    def __init__(
        self,
        *,
        inserts: Inserts,
        custody: Custody,
        corrections: Amender,
        clock: Clock,
        stop: asyncio.Event,
        again: Callable[[Batch], Awaitable[Batch]],
        encode: Callable[[pa.Table], Rows],
    ) -> None:
        self._inserts = inserts
        self._custody = custody
        self._corrections = corrections
        self._stop = stop
        self._again = again
        self._encode = encode
        self._stored: Batches[Batch] = Batches(LIMITS, clock)
        self._first_ms: dict[int, int] = {}

    @property
    def behind_since_ms(self) -> int | None:
        """The earliest tick that may be in the store as a sample and not in its hour; Unix ms."""
        return min(self._first_ms.values(), default=None)

    def expect(self, batch: Batch) -> None:
        """The samples of a batch are about to be stored."""
        self._first_ms[id(batch)] = batch.first_ms

    def forget(self, batch: Batch) -> None:
        """They were not stored."""
        self._first_ms.pop(id(batch), None)

    async def put(self, batch: Batch) -> None:
        """Take over a batch whose samples are stored; waits while many are here already."""
        await self._stored.put(batch)

    def close(self) -> None:
        """No more will come."""
        self._stored.close()

    async def run(self) -> None:
        """Roll and answer until closed and empty.

        Raises:
            FatalError: The store refuses this user, or its tables are not the expected ones.
        """
        while batches := await self._stored.take():
            try:
                await self._roll(batches)
                for batch in batches:
                    self.forget(batch)
                    await self._corrected(batch)
            except TransientError as error:
                # Only after `stop`: the frames come again after the next start.
                frames = sum(len(batch.held) for batch in batches)
                _log.warning("batches.unanswered", frames=frames, error=str(error))
                continue
            for batch in batches:
                await self._ack(batch)
            # Whoever holds a batch holds up what is to be done once its view is out of use.
            del batch, batches

    async def _roll(self, batches: Sequence[Batch]) -> None:
        tables = [batch.hours for batch in batches if batch.hours is not None]
        if not tables:
            return
        rows = await asyncio.to_thread(lambda: self._encode(hours.together(tables)))
        token = hashlib.sha256("\n".join(batch.batch_id for batch in batches).encode()).hexdigest()
        self._stored.pace(await self._inserts.insert(hours.TABLE, rows, token=token))

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
                    batch = await self._again(batch)
                    await self._roll([batch])

    async def _ack(self, batch: Batch) -> None:
        for number, one in enumerate(batch.held):
            if number % _ACKS_AT_A_TIME == 0:
                await asyncio.sleep(0)
            await self._custody.ack(one.delivery)
