"""An answer, and until when it is complete."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import TypeVar
from uuid import UUID

from batcher.watermark import Until, Watermark

T = TypeVar("T")


async def completed(
    watermark: Watermark,
    customer_id: str,
    vm_ids: Sequence[UUID],
    start: datetime,
    read: Callable[[], Awaitable[T]],
) -> tuple[T, Until]:
    """What is read, and the time before which it will not change.

    Args:
        watermark: Knows how far hosts have come, and what is being corrected.
        customer_id: Whose.
        vm_ids: Which VMs; empty for all.
        start: Begin of the window.
        read: Reads the answer from the store.

    Raises:
        As `read` and `Watermark.complete_until` do.
    """
    # First this: what has arrived by then is in the answer that is read after it.
    before = await watermark.undisturbed(customer_id, vm_ids)
    until = await watermark.complete_until(customer_id, vm_ids, start)
    found = await read()
    after = await watermark.undisturbed(customer_id, vm_ids)
    if before is None or before != after:
        # Rows are being moved, and may have been read under both customers or half.
        until = Until(None)
    return found, until
