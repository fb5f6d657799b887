"""Writes that only hold if nobody else was faster, tried again for a while if somebody was."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from gateway.errors import RETRY_AFTER_S, RefusedError
from runtime.buckets import RevisionConflictError
from schemas.errors import ErrorCode

_WITHIN_S = 5.0
_PAUSE_S = 0.02

T = TypeVar("T")


async def written(attempt: Callable[[], Awaitable[T]], what: str) -> T:
    """What an attempt comes to that reads and then writes by compare and set.

    Args:
        attempt: Reads anew each time, and raises RevisionConflictError if somebody was faster.
        what: What it writes, in a sentence for people.

    Raises:
        RefusedError: UNAVAILABLE, if others are faster all the time.
    """
    try:
        async with asyncio.timeout(_WITHIN_S):
            while True:
                try:
                    return await attempt()
                except RevisionConflictError:
                    await asyncio.sleep(random.uniform(0, _PAUSE_S))  # noqa: S311 - no secret
    except TimeoutError:
        raise RefusedError(
            ErrorCode.UNAVAILABLE,
            f"Others change {what} all the time. Look again, and send your change anew.",
            retry_after_s=RETRY_AFTER_S,
            unsure=True,
        ) from None
