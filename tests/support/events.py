"""Events on the bus, and readers of the gateway's streams."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

import httpx
import msgspec

from decisec.sdk.sse import SseEvent, SseParser
from runtime.bus import Bus
from runtime.clock import utc_now
from runtime.publisher import Publisher
from schemas.codec import encode
from schemas.events import VmCreated, VmEvent, VmPaused, decode_vm_event
from schemas.ids import new_id
from schemas.subjects import vm_event

SSE = {"Accept": "text/event-stream"}


def created(
    customer: str, vm_id: UUID | None = None, kind: type[VmCreated | VmPaused] = VmCreated,
    at: datetime | None = None,
) -> VmEvent:  # fmt: skip
    """An event of a VM."""
    return kind(
        event_id=new_id(),
        at=at or utc_now(),
        customer_id=customer,
        vm_id=vm_id or new_id(),
        host_id="h1",
    )


def published(event: VmEvent) -> VmEvent:
    """An event as it was published, of one as a customer gets it: hosts have another name there."""
    assert re.fullmatch("host-[a-z2-7]{24}", event.host_id), event
    return msgspec.structs.replace(event, host_id="h1")


async def publish(bus: Bus, *events: VmEvent) -> None:
    """Put events on their stream, in this order."""
    publisher = Publisher(bus)
    for event in events:
        await publisher.publish(vm_event(event), encode(event), msg_id=str(event.event_id))


@dataclass
class Reader:
    """One open stream."""

    response: httpx.Response
    parser: SseParser
    waiting: list[SseEvent] = field(default_factory=list)
    comments: int = 0

    def __post_init__(self) -> None:
        self._bytes = self.response.aiter_bytes()

    async def next(self, within_s: float = 10.0) -> SseEvent:
        """The next event; raises StopAsyncIteration at the end, TimeoutError if none comes."""
        async with asyncio.timeout(within_s):
            while not self.waiting:
                await self.more()
        return self.waiting.pop(0)

    async def more(self) -> None:
        """Take the next bytes."""
        data = await anext(self._bytes)
        self.comments += data.count(b":\n\n")
        self.waiting += self.parser.feed(data)

    async def events(self, count: int) -> list[VmEvent]:
        """So many events of VMs, as they were published."""
        return [published(decode_vm_event((await self.next()).data)) for _ in range(count)]

    async def end(self) -> dict[str, object]:
        """What the last event says, once the stream has ended."""
        last = None
        try:
            while True:
                last = await self.next()
        except StopAsyncIteration:
            assert last is not None
            assert last.kind == "end"
            found: dict[str, object] = msgspec.json.decode(last.data)
            return found


@asynccontextmanager
async def reading(
    api: httpx.AsyncClient, path: str = "/v1/events", place: str = "", **options: object
) -> AsyncIterator[Reader]:
    """An open stream for the length of the block."""
    headers = {**SSE, **({"Last-Event-ID": place} if place else {})}
    async with api.stream("GET", path, headers=headers, **options) as response:  # type: ignore[arg-type]
        if response.status_code != 200:
            await response.aread()
        assert response.status_code == 200, response.text
        assert response.headers["Content-Type"].startswith("text/event-stream")
        reader = Reader(response, SseParser(place))
        # The first bytes say that it is open: whatever happens from now on comes.
        await reader.more()
        yield reader
