"""What passes from one stage of storing to the next, and the insert that all of them do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
from tenacity import AsyncRetrying, RetryCallState

from batcher.amendment import View
from batcher.buffer import Held
from batcher.telemetry import Instruments
from runtime.clock import Clock
from runtime.errors import OverloadedError, PoisonError, TransientError
from runtime.health import Health
from runtime.retry import forever
from schemas.frames import EnrichedFrame

HEALTH_PART = "store"
_OVERLOAD_WAIT_S = 1.0
"""An overloaded store gets at least this much peace before the next try."""


class Sink(Protocol):
    """What is needed of the store."""

    async def insert(self, table: str, rows: Any, *, token: str) -> None:
        """As `Store.insert`."""


class Amender(Protocol):
    """What is needed of the corrections."""

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
        samples: What to insert, or why there is no table of these frames.
        hours: The same per VM and hour; None if there are no rows.
        batch_id: Their identity by content.
        began_ns: When they were taken, on the monotonic clock.
        view: The corrections that they were built by.
    """

    held: Sequence[Held]
    samples: Rows | PoisonError
    hours: pa.Table | None
    batch_id: str
    began_ns: int
    view: View

    @property
    def rows(self) -> int:
        """Its frames: what a batch of batches is measured by."""
        return len(self.held)

    @property
    def size(self) -> int:
        """Bytes of the messages."""
        return sum(one.size for one in self.held)

    @property
    def first_ms(self) -> int:
        """Its earliest tick, Unix ms."""
        return min(one.frame.tick_ms for one in self.held)


class Inserts:
    """Inserts, again and again while the store is away; health and metrics tell of that.

    Args:
        stop: Once set, a store that is away is no longer waited for.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        health: Health,
        instruments: Instruments,
        clock: Clock,
        stop: asyncio.Event,
    ) -> None:
        self._sink = sink
        self._health = health
        self._instruments = instruments
        self._clock = clock
        self._stop = stop

    async def insert(self, table: str, rows: Any, *, token: str) -> int:
        """Insert rows once; returns how long the store took for it, in ns.

        Raises:
            PoisonError: They cannot be stored as they are.
            TransientError: The store is away and `stop` is set.
            FatalError: It refuses this user, or its tables are not the expected ones.
        """
        taken_ns = 0
        async for attempt in self._patience():
            with attempt:
                began_ns = self._clock.monotonic_ns()
                try:
                    await self._sink.insert(table, rows, token=token)
                except TransientError as error:
                    self._instruments.retried(error)
                    self._health.unready(HEALTH_PART, str(error))
                    raise
                taken_ns = self._clock.monotonic_ns() - began_ns
                self._health.ready(HEALTH_PART)
        return taken_ns

    def _patience(self) -> AsyncRetrying:
        policy = forever("store-insert")
        backoff = policy.wait

        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            least = _OVERLOAD_WAIT_S if isinstance(error, OverloadedError) else 0.0
            return max(least, backoff(state))

        return policy.copy(wait=wait, stop=lambda _: self._stop.is_set())
