"""Whether something of a host is still on its way from the streams into the store."""

from __future__ import annotations

import nats.errors
import nats.js.errors

from runtime.bus import Bus
from runtime.consumer import floor_of
from runtime.errors import TransientError
from schemas import subjects

_NO_MESSAGE = 10037
"""JetStream error code: the stream is there, and has no such message."""
_WORKERS = {subjects.METRICS_RAW: "collector", subjects.METRICS_ENRICHED: "batcher"}
"""What the names of the consumers begin with that must have answered for a frame."""


async def on_its_way(bus: Bus, host_id: str) -> list[str]:
    """The consumers that may have frames of a host before them; empty if all is in the store.

    Raises:
        TransientError: The server did not say.
    """
    raw = [subjects.metrics_raw_anywhere(host_id), subjects.metrics_raw(host_id)]
    enriched = [subjects.metrics_enriched(host_id)]
    try:
        return [
            *await _behind(bus, subjects.METRICS_RAW, raw),
            *await _behind(bus, subjects.METRICS_ENRICHED, enriched),
        ]
    except (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError) as error:
        raise TransientError(f"no word about what is on its way of {host_id}: {error}") from error


async def _behind(bus: Bus, stream: str, filters: list[str]) -> list[str]:
    last = 0
    for subject in filters:
        try:
            last = max(last, (await bus.js.get_last_msg(stream, subject)).seq or 0)
        except nats.js.errors.NotFoundError as error:
            if error.err_code != _NO_MESSAGE:
                raise
    if not last:
        return []
    return [
        info.name
        for info in await bus.js.consumers_info(stream)
        if info.name.startswith(_WORKERS[stream])
        and (info.num_pending or info.num_ack_pending)
        and floor_of(info) < last
    ]
