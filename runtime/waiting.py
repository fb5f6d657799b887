"""How consumers wait: for a stop, and for batches worth their cost."""

from __future__ import annotations

import asyncio
import time

_SETTLE_S = 0.02


async def settle(handed_out_s: float, arrived: int, most: int) -> None:
    """Let more messages come if a batch was handed out just before and the next one is small.

    Args:
        handed_out_s: When that was, on the monotonic clock.
        arrived: How many there are for the next one.
        most: How many there may be.
    """
    left_s = handed_out_s + _SETTLE_S - time.monotonic()
    if left_s > 0 and arrived <= most // 2:
        await asyncio.sleep(left_s)


class stop_wakes:  # noqa: N801 - reads as a statement: `async with stop_wakes(...)`
    """Sets an event when `stop` is set, for the length of the block."""

    def __init__(self, stop: asyncio.Event, event: asyncio.Event) -> None:
        self._stop = stop
        self._event = event
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._run(), name="consumer-stop")

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        await self._stop.wait()
        self._event.set()
