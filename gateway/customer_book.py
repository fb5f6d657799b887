"""The customers as the bus last told of them, in the order of their names."""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right, insort
from contextlib import suppress

from runtime.buckets import Bucket, Mirror
from runtime.bus import Bus
from schemas.hosts import Customer, decode_customer
from schemas.subjects import CUSTOMERS

_SHOWN_WITHIN_S = 1.0


class CustomerBook:
    """The mirrored bucket. What operators write is known at every gateway within a second.

    Args:
        bus: The connection.

    Attributes:
        bucket: To read and write what stands on the server.
    """

    def __init__(self, bus: Bus) -> None:
        self.bucket = Bucket(bus, CUSTOMERS, decode_customer)
        self._names: list[str] = []
        self._mirror = Mirror(self.bucket, self._take)

    async def run(self) -> None:
        """Follow the bucket until cancelled."""
        await self._mirror.run()

    async def synced(self) -> None:
        """Return once everything that stood at the start is there."""
        await self._mirror.synced()

    def get(self, customer_id: str) -> Customer | None:
        """The operator's entry, if there is one."""
        return self._mirror.values.get(customer_id)

    def after(self, last: str, count: int) -> list[Customer]:
        """The next customers by name, behind `last`; from the first one if it is empty."""
        begin = bisect_right(self._names, last)
        return [self._mirror.values[name] for name in self._names[begin : begin + count]]

    async def shown(self, revision: int) -> None:
        """Wait until reads from memory show what was written at a revision, a second at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_SHOWN_WITHIN_S):
                await self._mirror.reached(revision)

    def _take(self, name: str, customer: Customer | None) -> None:
        at = bisect_left(self._names, name)
        known = at < len(self._names) and self._names[at] == name
        if customer is None and known:
            del self._names[at]
        elif customer is not None and not known:
            insort(self._names, name)
