"""Subscribes to the metrics of a running stack."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from decisec.live.rates import Live
from runtime.bus import Bus, Message
from schemas.codec import decoder
from schemas.errors import MalformedMessageError
from schemas.frames import FramesStored, decode_enriched_frame, replay_of
from schemas.subjects import METRICS_STORED

_log = structlog.get_logger("decisec.live")

_ENRICHED = "metrics.enriched.*"
_decode_stored = decoder(FramesStored)


def now_ms() -> int:
    """The clock that `following` gives its frames."""
    return time.monotonic_ns() // 1_000_000


@asynccontextmanager
async def following(bus: Bus, customers: frozenset[str] | None = None) -> AsyncIterator[Live]:
    """Live rates, kept up to date for the length of the block.

    Core subscriptions: looking on takes nothing from the services that share the streams.
    """
    live = Live(customers)

    async def on_frame(message: Message) -> None:
        if replay_of(message.headers):
            return  # what was, not what is
        try:
            live.take(decode_enriched_frame(message.data), now_ms())
        except MalformedMessageError as error:
            _log.warning("frame.refused", error=str(error))

    async def on_stored(message: Message) -> None:
        try:
            live.stored(_decode_stored(message.data))
        except MalformedMessageError as error:
            _log.warning("report.refused", error=str(error))

    frames = await bus.subscribe(_ENRICHED, on_frame)
    reports = await bus.subscribe(METRICS_STORED, on_stored)
    try:
        yield live
    finally:
        if bus.connected:
            await frames.unsubscribe()
            await reports.unsubscribe()
