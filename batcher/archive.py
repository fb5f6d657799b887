"""What answers about usage are made of: the store, how far it is complete, what it still keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from batcher.store import Store
from batcher.watermark import Watermark
from batcher.windows import Retention
from runtime.clock import Clock
from schemas.units import NS_PER_S


@dataclass(frozen=True, slots=True)
class Archive:
    """Shared by all who answer.

    Attributes:
        limit_s: The engine gives up a query after this.
        rolled_until_ms: See `Flusher.rolled_until_ms`.
    """

    store: Store
    watermark: Watermark
    retention: Retention
    clock: Clock
    limit_s: int
    rolled_until_ms: Callable[[], int | None]

    @property
    def now(self) -> datetime:
        """The time, UTC."""
        return datetime.fromtimestamp(self.clock.wall_ns() / NS_PER_S, UTC)
