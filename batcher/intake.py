"""From the stream into the buffer: decode each frame, set aside what is none."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from batcher.buffer import Buffer, Custody, Held
from batcher.progress import ProgressKeeper
from batcher.refusals import Refusals
from runtime.consumer import Consumer, Delivery
from schemas.errors import MalformedMessageError
from schemas.frames import decode_enriched_frame


class Intake:
    """Reads the stream of enriched frames until told to stop, then closes the buffer.

    While the store is away the buffer stays full and nothing more is fetched: the stream holds
    the rest.

    Args:
        consumer: Of the stream.
        buffer: Takes frames.
        custody: Notes what was taken.
        refusals: Takes what is no frame.
        progress: Takes what collectors say of how far hosts have come; without it that is no frame.
    """

    def __init__(
        self,
        consumer: Consumer,
        buffer: Buffer,
        custody: Custody,
        refusals: Refusals,
        progress: ProgressKeeper | None = None,
    ) -> None:
        self._consumer = consumer
        self._buffer = buffer
        self._custody = custody
        self._refusals = refusals
        self._progress = progress

    async def run(self, stop: asyncio.Event) -> None:
        """Fetch until `stop` is set."""
        try:
            async with aclosing(self._consumer.batches(stop)) as batches:  # type: ignore[type-var]
                async for batch in batches:
                    # All at once, so that none runs out of time behind a full buffer.
                    for delivery in [d for d in batch if self._custody.take(d)]:
                        await self._take(delivery)
        finally:
            self._buffer.close()

    async def _take(self, delivery: Delivery) -> None:
        if self._progress is not None and self._progress.concerns(delivery):
            await self._progress.take(delivery)
            return
        try:
            frame = decode_enriched_frame(delivery.data)
        except MalformedMessageError as error:
            await self._refusals.refuse(delivery, error.reason, error.detail)
            return
        await self._buffer.put(Held(delivery, frame))
