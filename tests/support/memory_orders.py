"""Orders for the host `h1` and the place where it tells of itself, in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from uuid import UUID

from runtime.clock import utc_now
from runtime.errors import TransientError
from schemas.events import HostDrained
from schemas.hosts import HostOrders


class MemoryOrders:
    """`OrderBook` and `Announce` of an agent.

    Attributes:
        heard: Cleared: NATS has not told yet what stands.
        told: What was announced.
        away: Announcements fail.
    """

    def __init__(self) -> None:
        self.heard = asyncio.Event()
        self.heard.set()
        self.told: list[HostDrained] = []
        self.away = False
        self._orders: dict[str, HostOrders] = {}

    def give(
        self, *, draining: bool, reason: str = "", quarantined: tuple[UUID, ...] = ()
    ) -> HostOrders:
        """Order something."""
        order = HostOrders(
            host_id="h1",
            draining=draining,
            reason=reason,
            requested_by="test",
            ordered_at=utc_now(),
            quarantined=quarantined,
        )
        self._orders["h1"] = order
        return order

    def remove(self) -> None:
        """Take the order out of the bucket."""
        self._orders.clear()

    @property
    def values(self) -> Mapping[str, HostOrders]:
        """`OrderBook`."""
        return self._orders if self.heard.is_set() else {}

    @property
    def is_synced(self) -> bool:
        """`OrderBook`."""
        return self.heard.is_set()

    async def synced(self) -> None:
        """`OrderBook`."""
        await self.heard.wait()

    async def run(self) -> None:
        """`OrderBook`."""
        await asyncio.Event().wait()

    async def announce(self, event: HostDrained) -> None:
        """Keep an event."""
        await asyncio.sleep(0)
        if self.away:
            raise TransientError("away")
        self.told.append(event)
