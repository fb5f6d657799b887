"""One reader of all events on a gateway, and whoever listens to some of them.

It reads only while somebody listens. Each customer's events are encoded once, however many listen;
a listener that does not keep up is cut off, and holds up nobody.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

import msgspec
import structlog

from gateway import sse
from gateway.event_ids import EventIds, shared_secret
from gateway.host_names import HostNames
from runtime.bus import Bus
from runtime.consumer import Delivery
from runtime.errors import TransientError
from runtime.following import Extent, Follower, extent_of
from runtime.telemetry import meter
from schemas import subjects
from schemas.codec import encode
from schemas.errors import InvalidIdError, MalformedMessageError
from schemas.events import VmEvent, decode_vm_event, event_type

_log = structlog.get_logger("decisec.events")

_NEXT_S = 1.0
_LINGER_S = 5.0
"""How long it reads on when nobody listens."""
_PAUSE_S = 0.25
_START_S = 4.0


class Told(NamedTuple):
    """An event on its way to listeners: what decides, and the chunk that is sent."""

    sequence: int
    vm_id: UUID
    kind: str
    chunk: bytes


@dataclass(frozen=True, slots=True)
class Choice:
    """Which of a customer's events are wanted; empty for all."""

    customer_id: str
    vm_ids: frozenset[UUID] = frozenset()
    kinds: frozenset[str] = frozenset()

    def takes(self, told: Told) -> bool:
        """Whether this one is wanted."""
        return (not self.vm_ids or told.vm_id in self.vm_ids) and (
            not self.kinds or told.kind in self.kinds
        )

    @property
    def subjects(self) -> tuple[str, ...]:
        """Filters for the stream; they may let more through."""
        if len(self.vm_ids) * max(1, len(self.kinds)) > _MOST_FILTERS or not self.vm_ids:
            return (subjects.vm_events_of(self.customer_id),)
        return tuple(
            subjects.vm_events_at(self.customer_id, vm_id, kind)
            for vm_id in sorted(self.vm_ids)
            for kind in (sorted(self.kinds) or [""])
        )


_MOST_FILTERS = 32


class Listener:
    """What one stream has yet to send.

    Args:
        choice: What is wanted.
        slow: Set once more than `most` events wait; then none is kept.

    Attributes:
        since: Everything after this sequence that is wanted comes.
    """

    def __init__(self, choice: Choice, slow: asyncio.Event, most: int) -> None:
        self.choice = choice
        self.since = 0
        self._slow = slow
        self._most = most
        self._waiting: deque[Told] = deque()
        self._news = asyncio.Event()

    def put(self, told: Told) -> None:
        """Take over an event."""
        if self._slow.is_set():
            return
        if len(self._waiting) >= self._most:
            self._waiting.clear()
            self._slow.set()
            return
        self._waiting.append(told)
        self._news.set()

    async def take(self, within_s: float) -> list[Told]:
        """What waits; empty if nothing came in time."""
        if not self._waiting:
            self._news.clear()
            try:
                async with asyncio.timeout(within_s):
                    await self._news.wait()
            except TimeoutError:
                return []
        taken = list(self._waiting)
        self._waiting.clear()
        return taken


class EventHub:
    """Reads `VM_EVENTS` once for all listeners.

    Args:
        bus: The connection.
        names: Calls hosts as customers may know them: whoever listens, for all hear the same bytes.
        buffer: Events that may wait for one listener.
    """

    def __init__(self, bus: Bus, names: HostNames, buffer: int) -> None:
        self._bus = bus
        self._names = names
        self._buffer = buffer
        self._listeners: dict[str, set[Listener]] = defaultdict(set)
        self._wanted = asyncio.Event()
        self._reading = asyncio.Event()
        self._position = 0
        self._ids: EventIds | None = None
        self._born = ""
        self._refused = meter().create_counter(
            "decisec_gateway_events_refused",
            description="Events that are none, or not the subject's",
        )

    async def run(self) -> None:
        """Read while somebody listens, until cancelled."""
        while True:
            await self._wanted.wait()
            try:
                at = await extent_of(self._bus, subjects.VM_EVENTS)
                await self.ids(at)
                await self._read(at.last)
            except TransientError as error:
                _log.warning("events.interrupted", error=str(error))
                await asyncio.sleep(_PAUSE_S)

    async def ids(self, at: Extent) -> EventIds:
        """How places in this stream are told to customers.

        Raises:
            TransientError: The secret cannot be had.
        """
        if self._ids is None or self._born != at.born:
            self._ids = EventIds(await shared_secret(self._bus), at.born)
            self._born = at.born
        return self._ids

    @asynccontextmanager
    async def listening(self, choice: Choice, slow: asyncio.Event) -> AsyncIterator[Listener]:
        """A listener for the length of the block; `slow` is set if it does not keep up.

        Raises:
            TransientError: Events cannot be read now.
        """
        listener = Listener(choice, slow, self._buffer)
        listeners = self._listeners[choice.customer_id]
        # It is there before the position is known, so nothing passes by in between.
        listeners.add(listener)
        self._wanted.set()
        try:
            try:
                async with asyncio.timeout(_START_S):
                    await self._reading.wait()
            except TimeoutError as error:
                raise TransientError("events cannot be read at the moment") from error
            listener.since = self._position
            yield listener
        finally:
            listeners.discard(listener)
            if not listeners:
                self._listeners.pop(choice.customer_id, None)

    def told(self, delivery: Delivery, ids: EventIds) -> Told | None:
        """An event as it is sent; None for what is none, or lies about whose it is."""
        try:
            found = _own(delivery)
        except (MalformedMessageError, InvalidIdError) as error:
            self._refused.add(1)
            _log.error("event.refused", sequence=delivery.sequence, error=str(error)[:300])
            return None
        kind = event_type(found)
        place = ids.seal(found.customer_id, delivery.sequence)
        chunk = sse.event(kind, encode(self.shown(found)), place)
        return Told(delivery.sequence, found.vm_id, kind, chunk)

    def shown(self, event: VmEvent) -> VmEvent:
        """An event as its VM's owner sees it."""
        name = self._names.told(event.customer_id, event.host_id)
        return msgspec.structs.replace(event, host_id=name)

    async def _read(self, position: int) -> None:
        self._position = position
        idle_s = 0.0
        async with Follower(self._bus, subjects.VM_EVENTS, position) as follower:
            self._reading.set()
            try:
                while idle_s < _LINGER_S:
                    try:
                        deliveries = await follower.next(_NEXT_S)
                    except TransientError as error:
                        # Who listens goes on waiting: the follower goes on where it stopped.
                        _log.warning("events.interrupted", error=str(error))
                        await asyncio.sleep(_PAUSE_S)
                        continue
                    for delivery in deliveries:
                        self._hand_out(delivery)
                    idle_s = 0.0 if self._listeners else idle_s + (0 if deliveries else _NEXT_S)
            finally:
                self._reading.clear()
        if not self._listeners:
            self._wanted.clear()

    def _hand_out(self, delivery: Delivery) -> None:
        self._position = delivery.sequence
        listeners = self._listeners.get(delivery.subject.split(".", 3)[2])
        if not listeners or self._ids is None:
            return
        told = self.told(delivery, self._ids)
        if told is None:
            return
        for listener in listeners:
            if listener.choice.takes(told):
                listener.put(told)


def _own(delivery: Delivery) -> VmEvent:
    # Rights are given by subject: what an event says of itself must be what it was allowed to.
    found = decode_vm_event(delivery.data)
    if subjects.vm_event(found) != delivery.subject:
        raise MalformedMessageError("wrong_subject", delivery.subject[:120])
    return found
