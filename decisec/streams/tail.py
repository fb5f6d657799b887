"""What goes over the bus now, seen by a subscription: nothing is taken from anybody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from nats.aio.subscription import Subscription

from decisec.streams.reading import Record
from runtime.bus import Bus, Message
from runtime.clock import utc_now
from schemas.subjects import (
    HOST_EVENTS,
    METRICS_ENRICHED,
    METRICS_REJECTED,
    VM_COMMANDS,
    VM_EVENTS,
)

_WAITING = 4096
"""Messages that a slow reader may be behind."""

SUBJECTS = {
    METRICS_ENRICHED: "metrics.enriched.*",
    METRICS_REJECTED: "metrics.rejected.>",
    VM_EVENTS: "vm.evt.>",
    HOST_EVENTS: "host.evt.>",
    VM_COMMANDS: "vm.cmd.>",
}
"""What each stream takes, as a subscription has it."""


@dataclass(slots=True)
class Tail:
    """Messages as they come.

    Attributes:
        missed: How many came too fast for the reader.
    """

    missed: int = 0
    _queue: asyncio.Queue[tuple[str, Record]] = field(
        default_factory=lambda: asyncio.Queue(_WAITING)
    )

    async def __aiter__(self) -> AsyncIterator[tuple[str, Record]]:
        """Stream and message, for ever. Of a message seen in passing the sequence is 0."""
        while True:
            yield await self._queue.get()

    def take(self, stream: str, message: Message) -> None:
        """Put one in the queue, if there is room."""
        record = Record(0, utc_now(), message.subject, message.data, message.headers)
        try:
            self._queue.put_nowait((stream, record))
        except asyncio.QueueFull:
            self.missed += 1


@asynccontextmanager
async def tail(bus: Bus, *streams: str) -> AsyncIterator[Tail]:
    """What comes for these streams while the block lasts."""
    following = Tail()

    async def subscribe(stream: str) -> None:
        async def hear(message: Message) -> None:
            following.take(stream, message)

        subscriptions.append(await bus.subscribe(SUBJECTS[stream], hear))

    subscriptions: list[Subscription] = []
    for stream in streams:
        await subscribe(stream)
    # The server has them before anybody relies on it.
    await bus.client.flush()
    try:
        yield following
    finally:
        if bus.connected:
            for subscription in subscriptions:
                await subscription.unsubscribe()
