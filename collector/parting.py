"""How the stream of raw frames is parted, by the server's word."""

from __future__ import annotations

from typing import NamedTuple

import nats.errors
import nats.js.errors

from runtime.bus import Bus
from runtime.errors import TransientError
from schemas import subjects


class Parting(NamedTuple):
    """What the server said.

    Attributes:
        partitions: How many; 0 for a stream that is not parted.
        last_sequence: Of the last frame that it had then.
    """

    partitions: int
    last_sequence: int


async def parting(bus: Bus) -> Parting:
    """Ask the server.

    Raises:
        TransientError: It did not say.
    """
    try:
        info = await bus.js.stream_info(subjects.METRICS_RAW)
    except (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError) as error:
        raise TransientError(f"no word about {subjects.METRICS_RAW}: {error}") from error
    transform = info.config.subject_transform
    partitions = subjects.partitions_of((transform and transform.dest) or "")
    return Parting(partitions, info.state.last_seq)
