"""Time as a thing that is passed in, so that decisions about it can be tested."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What a loop needs of time."""

    def wall_ns(self) -> int:
        """Unix time in ns; may step either way."""

    def monotonic_ns(self) -> int:
        """Time since some start, in ns; never goes back."""

    async def sleep_until(self, monotonic_ns: int) -> None:
        """Return once `monotonic_ns()` has reached the given instant."""


class SystemClock:
    """The machine's clocks."""

    def wall_ns(self) -> int:
        """Unix time in ns."""
        return time.time_ns()

    def monotonic_ns(self) -> int:
        """CLOCK_MONOTONIC in ns."""
        return time.monotonic_ns()

    async def sleep_until(self, monotonic_ns: int) -> None:
        """Sleep until CLOCK_MONOTONIC has reached `monotonic_ns`; at once if it has."""
        while (left := monotonic_ns - time.monotonic_ns()) > 0:
            await asyncio.sleep(left / 1e9)


def utc_now() -> datetime:
    """The wall clock as an aware datetime, for messages people read."""
    return datetime.now(UTC)
