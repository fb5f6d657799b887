"""Coroutines side by side: the first to end decides, or all must end well."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


async def race(
    work: Coroutine[Any, Any, T], against: Coroutine[Any, Any, object], *, name: str
) -> T | None:
    """Run both; cancel the other one when the first ends, and wait until it has cleaned up.

    Returns:
        What `work` returned, or None if `against` returned first.

    Raises:
        Exception: What failed first, as it is.
    """
    try:
        async with asyncio.TaskGroup() as group:
            runner = group.create_task(work, name=name)
            other = group.create_task(against, name=f"{name}-against")
            await asyncio.wait({runner, other}, return_when=asyncio.FIRST_COMPLETED)
            runner.cancel()
            other.cancel()
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return None if runner.cancelled() else runner.result()


async def together(works: Sequence[Coroutine[Any, Any, T]], *, name: str) -> list[T]:
    """Run all, and return their results in order.

    Raises:
        Exception: What failed first, as it is; the others are cancelled.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(work, name=f"work-{place}") for place, work in enumerate(works)
            ]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
