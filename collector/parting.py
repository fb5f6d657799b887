"""How the stream of raw frames is parted and has been, by the server's word."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import nats.errors
import nats.js.errors

from runtime.bus import Bus
from runtime.errors import TransientError
from schemas import subjects

DURABLE = "collector"
"""Of the frames that were stored while the stream had no partitions; `collector-<p>` of the rest.
Collectors that knew no partitions worked at it, and what they had acknowledged stays so."""


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
    with _asking():
        info = await bus.js.stream_info(subjects.METRICS_RAW)
    transform = info.config.subject_transform
    partitions = subjects.partitions_of((transform and transform.dest) or "")
    return Parting(partitions, info.state.last_seq)


async def former_partitions(bus: Bus) -> int:
    """How many there may have been, by who worked at them and by what is left.

    Raises:
        TransientError: The server did not say.
    """
    name = subjects.METRICS_RAW
    with _asking():
        consumers = await bus.js.consumers_info(name)
        info = await bus.js.stream_info(name, subjects_filter=subjects.METRICS_RAW_PARTED)
    words = [consumer.name.removeprefix(f"{DURABLE}-") for consumer in consumers]
    words += [subject.split(".")[2] for subject in info.state.subjects or {}]
    return max((int(word) + 1 for word in words if word.isdecimal()), default=0)


@contextmanager
def _asking() -> Iterator[None]:
    try:
        yield
    except (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError) as error:
        raise TransientError(f"no word about {subjects.METRICS_RAW}: {error}") from error
