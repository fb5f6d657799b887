"""What collectors tell each other, so that they share the work."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import msgspec

from schemas.codec import decoder


class CollectorAlive(msgspec.Struct, frozen=True, kw_only=True):
    """A collector's heartbeat on `collector.alive.<collector>`.

    Attributes:
        collector_id: New at every start.
        units: Names of the consumers at which it works or stands by.
        leaving: It takes no more work; the others share what it had.
    """

    collector_id: UUID
    units: tuple[str, ...] = ()
    leaving: bool = False


decode_collector_alive: Callable[[bytes], CollectorAlive] = decoder(CollectorAlive)
