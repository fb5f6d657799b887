"""Answers `events.query.<customer>`: whose events they are says the subject, never the message."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec

from batcher.replies import replied
from batcher.store import Store
from runtime.bus import Bus, Message
from runtime.consumer import floor_of, info_of
from schemas import subjects
from schemas.codec import encode
from schemas.event_lists import (
    EventPlace,
    EventsFound,
    EventsQuery,
    EventsReply,
    decode_events_query,
)

SUBJECT = "events.query.*"
_MAX_REPLY_BYTES = 900_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST_US = 2**53


def _query(order: str, beyond: str) -> str:
    return f"""
SELECT toUnixTimestamp64Micro(at) AS at_us, event_id, any(body)
FROM vm_events
WHERE customer_id = {{customer:String}}
    AND (empty({{vm_ids:Array(UUID)}}) OR has({{vm_ids:Array(UUID)}}, vm_id))
    AND (empty({{types:Array(String)}}) OR has({{types:Array(String)}}, type))
    AND at >= fromUnixTimestamp64Micro({{start_us:Int64}}, 'UTC')
    AND at < fromUnixTimestamp64Micro({{end_us:Int64}}, 'UTC')
    AND (NOT {{begun:UInt8}} OR
        (at, event_id) {beyond} (fromUnixTimestamp64Micro({{at_us:Int64}}, 'UTC'), {{id:UUID}}))
GROUP BY at, event_id
ORDER BY at {order}, event_id {order}
LIMIT {{limit:UInt32}}
"""  # noqa: S608 - put together from our own words only


_NEWEST = _query("DESC", "<")
_OLDEST = _query("ASC", ">")


class EventDoor:
    """A bus handler: one query after the other, each bounded in time and memory.

    Args:
        store: Where events are.
        bus: Tells how far the store has come.
        durable: The consumer by which events get into the store.
        limit_s: The engine gives up after this.
    """

    def __init__(self, store: Store, bus: Bus, durable: str, *, limit_s: int) -> None:
        self._store = store
        self._bus = bus
        self._durable = durable
        self._limit_s = limit_s

    async def answer(self, message: Message) -> bytes:
        """The encoded `EventsReply` to a query; errors travel inside it."""
        reply = await replied(
            self._found(message), message.subject, lambda error: EventsReply(error=error)
        )
        return encode(reply)

    async def _found(self, message: Message) -> EventsReply:
        customer_id = subjects.customer_of(message.subject)
        query = decode_events_query(message.data)
        # First this: what was stored by then is in the answer that is read after it.
        stored = floor_of(await info_of(self._bus, subjects.VM_EVENTS, self._durable))
        rows = await self._store.query(
            _NEWEST if query.newest_first else _OLDEST,
            _parameters(customer_id, query),
            settings={"max_execution_time": self._limit_s, "max_memory_usage": 1024**3},
        )
        events: list[msgspec.Raw] = []
        last: EventPlace | None = None
        left_bytes = _MAX_REPLY_BYTES
        for at_us, event_id, body in rows[: query.limit]:
            data = str(body).encode()
            if events and len(data) > left_bytes:
                break
            left_bytes -= len(data)
            events.append(msgspec.Raw(data))
            last = EventPlace(at=_instant(int(at_us)), event_id=UUID(str(event_id)))
        more = len(rows) > len(events)
        return EventsReply(
            found=EventsFound(
                events=tuple(events), next=last if more else None, stored_sequence=stored
            )
        )


def _parameters(customer_id: str, query: EventsQuery) -> dict[str, Any]:
    after = query.after
    return {
        "customer": customer_id,
        "vm_ids": list(query.vm_ids),
        "types": list(query.types),
        "start_us": _us(query.start) if query.start else 0,
        "end_us": _us(query.end) if query.end else _LATEST_US,
        "begun": int(after is not None),
        "at_us": _us(after.at) if after else 0,
        "id": after.event_id if after else UUID(int=0),
        "limit": query.limit + 1,
    }


def _us(instant: datetime) -> int:
    # What the store's type holds: 1900 to 2299.
    return max(-_LATEST_US // 8, min(_LATEST_US, (instant - _EPOCH) // timedelta(microseconds=1)))


def _instant(us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=us)
