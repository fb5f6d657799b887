"""Events of a customer's VMs: lists out of the store, and streams that go on where one stopped."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from gateway import sse
from gateway.auth import Principal, Scope
from gateway.errors import RefusedError, unavailable
from gateway.event_hub import Choice, EventHub
from gateway.event_ids import EventIds, UnknownPlaceError
from gateway.settings import GatewaySettings
from gateway.sse import SLOW
from gateway.store_questions import StoreQuestions
from gateway.streams import Streams
from runtime.bus import Bus
from runtime.errors import TransientError
from runtime.following import Extent, Follower, extent_of
from schemas.api import FieldProblem
from schemas.codec import decoder, encode
from schemas.errors import ErrorCode, MalformedMessageError
from schemas.event_lists import (
    EventList,
    EventPlace,
    EventsQuery,
    StreamNotice,
    decode_events_reply,
)
from schemas.events import decode_vm_event
from schemas.subjects import VM_EVENTS, events_query

_LOST = StreamNotice(
    code="expired",
    message="Events after the one named may be gone: they are no longer kept in the stream.",
    resume=True,
)
_RETRY_MS = 1000
_TIMEOUT_S = 10.0
_decode_place = decoder(EventPlace)


@dataclass(frozen=True, slots=True)
class EventsWanted:
    """What a list is asked for.

    Attributes:
        cursor: Of the page before; empty for the first.
    """

    start: datetime | None
    end: datetime | None
    vm_ids: tuple[UUID, ...]
    kinds: tuple[str, ...]
    newest_first: bool
    limit: int
    cursor: str


class EventService:
    """Answers and streams for principals that are authenticated already.

    Raises RefusedError for what it will not do, and TransientError when the bus is away.
    """

    def __init__(
        self, bus: Bus, hub: EventHub, streams: Streams, settings: GatewaySettings
    ) -> None:
        self._bus = bus
        self._store = StoreQuestions(bus, _TIMEOUT_S)
        self._hub = hub
        self._streams = streams
        self._heartbeat_s = settings.stream_heartbeat_s

    async def page(self, principal: Principal, wanted: EventsWanted) -> EventList:
        """A page of events out of the store."""
        principal.require(Scope.VMS_READ)
        query = EventsQuery(
            start=wanted.start,
            end=wanted.end,
            vm_ids=wanted.vm_ids,
            types=wanted.kinds,
            newest_first=wanted.newest_first,
            limit=wanted.limit,
            after=_place(wanted.cursor) if wanted.cursor else None,
        )
        reply = await self._store.ask(
            events_query(principal.customer_id), query, decode_events_reply
        )
        if reply.found is None:
            raise TransientError("the events reply is empty")
        try:
            events = tuple(decode_vm_event(bytes(body)) for body in reply.found.events)
        except MalformedMessageError as error:
            raise TransientError(f"malformed events reply: {error.detail}") from error
        if any(event.customer_id != principal.customer_id for event in events):
            raise TransientError("the events reply is not for this customer")
        following = reply.found.next
        ids = await self._hub.ids(await extent_of(self._bus, VM_EVENTS))
        return EventList(
            events=tuple(map(self._hub.shown, events)),
            next_cursor=_cursor(following) if following else "",
            follow_from=ids.seal(principal.customer_id, reply.found.stored_sequence),
        )

    async def stream(
        self,
        principal: Principal,
        vm_ids: tuple[UUID, ...],
        kinds: tuple[str, ...],
        after: str,
        *endings: sse.Ending,
    ) -> sse.EventStream:
        """All events from a place on, or from now on.

        Args:
            principal: Whose.
            vm_ids: Only of these; empty for all.
            kinds: Only of these types; empty for all.
            after: The id of the last event that the client has; empty for none.
            endings: What ends it besides this gateway's stop and a client that does not read.
        """
        principal.require(Scope.VMS_READ)
        if not self._bus.connected:
            raise unavailable()
        choice = Choice(principal.customer_id, frozenset(vm_ids), frozenset(kinds))
        at = await extent_of(self._bus, VM_EVENTS)
        ids = await self._hub.ids(at)
        position = None
        if after:
            try:
                position = ids.open(principal.customer_id, after)
            except UnknownPlaceError as error:
                raise RefusedError(
                    ErrorCode.BAD_REQUEST,
                    "Last-Event-ID: no id of this stream; begin without one",
                    fields=(FieldProblem(field="Last-Event-ID", message=str(error)),),
                ) from None
        slow = asyncio.Event()

        async def overrun() -> StreamNotice:
            await slow.wait()
            return SLOW

        chunks = self._chunks(choice, ids, at, position, slow)
        return await sse.begin(chunks, self._streams.closed, overrun, *endings)

    async def _chunks(
        self,
        choice: Choice,
        ids: EventIds,
        at: Extent,
        position: int | None,
        slow: asyncio.Event,
    ) -> sse.Chunks:
        with self._streams.room(choice.customer_id, "events"):
            head = f"retry: {_RETRY_MS}\n\n".encode()
            if position is not None:
                if position + 1 < at.first:
                    head += sse.notice("lost", _LOST)
                yield head
                async with aclosing(self._past(choice, ids, position)) as past:
                    async for reached, chunk in past:
                        position = reached
                        yield chunk
            async with self._hub.listening(choice, slow) as listener:
                if position is None:
                    position = listener.since
                    yield head + sse.place(ids.seal(choice.customer_id, position))
                elif position < listener.since:
                    # What came between the last look and the first that the listener is told of.
                    async with aclosing(self._past(choice, ids, position)) as past:
                        async for reached, chunk in past:
                            position = reached
                            yield chunk
                while True:
                    told = await listener.take(self._heartbeat_s)
                    fresh = [one.chunk for one in told if one.sequence > position]
                    if fresh or not told:
                        yield b"".join(fresh) or sse.HEARTBEAT

    async def _past(
        self, choice: Choice, ids: EventIds, after: int
    ) -> AsyncGenerator[tuple[int, bytes], None]:
        """Chunks of what the stream holds after a sequence, each with that of its last event."""
        async with Follower(self._bus, VM_EVENTS, after, choice.subjects) as follower:
            while not await follower.caught_up():
                deliveries = await follower.next(self._heartbeat_s)
                told = [self._hub.told(delivery, ids) for delivery in deliveries]
                chunks = [one.chunk for one in told if one is not None and choice.takes(one)]
                yield follower.position, b"".join(chunks) or sse.HEARTBEAT


def _cursor(place: EventPlace) -> str:
    return base64.urlsafe_b64encode(encode(place)).rstrip(b"=").decode()


def _place(cursor: str) -> EventPlace:
    try:
        data = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        place: EventPlace = _decode_place(data)
    except (ValueError, MalformedMessageError):
        message = "no cursor of a page of events"
        raise RefusedError(
            ErrorCode.BAD_REQUEST,
            f"cursor: {message}",
            fields=(FieldProblem(field="cursor", message=message),),
        ) from None
    return place
