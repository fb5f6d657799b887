"""Lists of events out of a real chDB."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from batcher.event_door import EventDoor
from batcher.records import FEEDS, Row
from batcher.store import Store
from runtime.bus import Bus, Message
from runtime.consumer import Consumer
from schemas.codec import encode
from schemas.errors import ErrorCode
from schemas.event_lists import EventsFound, EventsQuery, EventsReply, decode_events_reply
from schemas.events import VmCreated, VmEvent, VmPaused, decode_vm_event, event_type
from schemas.ids import new_id
from schemas.subjects import VM_EVENTS
from tests.support.events import created, publish
from tests.support.nats import bus_with_streams
from tests.support.store import embedded_store

pytestmark = pytest.mark.asyncio(loop_scope="module")
BEGIN = datetime(2026, 5, 1, tzinfo=UTC)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def store(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Store]:
    async with embedded_store(tmp_path_factory.mktemp("events") / "store") as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def bus(tmp_path: Path) -> AsyncIterator[Bus]:
    async with bus_with_streams(tmp_path / "nats") as (_, connected):
        yield connected


async def stored(store: Store, *events: VmEvent) -> None:
    """Put events into the store as the batcher does."""
    rows: list[Row] = [
        {
            "customer_id": event.customer_id,
            "vm_id": event.vm_id.bytes,
            "at": event.at,
            "event_id": event.event_id.bytes,
            "type": event_type(event),
            "host": event.host_id,
            "incarnation": event.incarnation,
            "command_id": None,
            "reason": "",
            "body": encode(event).decode(),
            "recorded_at": datetime.now(UTC),
        }
        for event in events
    ]
    await store.insert("vm_events", FEEDS[0].rows(rows), token=str(new_id()))


async def answered(door: EventDoor, customer: str, **query: Any) -> EventsReply:
    """What the door says."""
    message = Message(f"events.query.{customer}", encode(EventsQuery(**query)), {}, "")
    return decode_events_reply(await door.answer(message))


async def found(door: EventDoor, customer: str, **query: Any) -> EventsFound:
    """What the door finds."""
    reply = await answered(door, customer, **query)
    assert reply.found is not None, reply.error
    return reply.found


async def test_events_are_found_in_either_order_and_paged(store: Store, bus: Bus) -> None:
    """Every one once, over pages of any size, also where several have the same time."""
    door = await opened(store, bus)
    vms = [new_id(), new_id()]
    events = [
        created(
            "list",
            vms[number % 2],
            VmPaused if number % 3 else VmCreated,
            at=BEGIN + timedelta(microseconds=number // 4),
        )
        for number in range(40)
    ]
    await stored(store, *events, created("foreign", vms[0], at=BEGIN))
    await stored(store, *events[:10])
    expected = sorted(events, key=lambda event: event.at)
    for newest_first in (True, False):
        for limit in (7, 40, 1000):
            seen: list[VmEvent] = []
            after = None
            while True:
                page = await found(
                    door, "list", newest_first=newest_first, limit=limit, after=after
                )
                assert len(page.events) <= limit
                seen += [decode_vm_event(bytes(body)) for body in page.events]
                after = page.next
                if after is None:
                    break
            assert len(seen) == len(events)
            assert {event.event_id for event in seen} == {event.event_id for event in events}
            times = [event.at for event in seen]
            assert times == [event.at for event in expected][:: -1 if newest_first else 1]
    some = await found(
        door, "list", vm_ids=(vms[1],), types=("vm_paused",),
        start=BEGIN + timedelta(microseconds=2), end=BEGIN + timedelta(microseconds=5),
    )  # fmt: skip
    wanted = {
        event.event_id
        for event in events[8:20]
        if event.vm_id == vms[1] and isinstance(event, VmPaused)
    }
    assert {decode_vm_event(bytes(body)).event_id for body in some.events} == wanted


async def opened(store: Store, bus: Bus) -> EventDoor:
    """A door, and the consumer by which it knows how far the store has come."""
    consumer = Consumer(bus, VM_EVENTS, FEEDS[0].durable)
    await consumer.ensure()
    return EventDoor(store, bus, FEEDS[0].durable, limit_s=10)


async def test_an_answer_says_how_far_the_store_had_come(store: Store, bus: Bus) -> None:
    """Up to there, and no further, a reader of the stream has seen everything in the list."""
    door = await opened(store, bus)
    assert (await found(door, "acme")).stored_sequence == 0
    await publish(bus, created("acme"), created("acme"))
    assert (await found(door, "acme")).stored_sequence == 0


async def test_what_is_no_query_is_refused(store: Store, bus: Bus) -> None:
    """With a reason; also the subject's customer is checked, and a missing consumer waited for."""
    door = EventDoor(store, bus, "nobody", limit_s=10)
    assert (await answered(door, "acme")).error is not None
    for subject, data in (
        ("events.query.acme", b"x"),
        ("events.query.acme", encode(EventsQuery(types=("vm'; DROP TABLE vm_events",)))),
        ("events.query.a*", b"{}"),
    ):
        reply = decode_events_reply(await door.answer(Message(subject, data, {}, "")))
        assert reply.error is not None
        assert reply.error.code is ErrorCode.BAD_REQUEST
