"""Events and audit entries out of their streams into the store: each once, whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import pytest_asyncio
from msgspec.structs import replace

from batcher.feeds import Feeder
from batcher.records import FEEDS, Feed
from batcher.store import Store
from batcher.telemetry import Instruments
from runtime.bus import Bus
from runtime.clock import SystemClock, utc_now
from runtime.errors import PoisonError, TransientError
from runtime.publisher import Publisher
from schemas import subjects
from schemas.audit import AuditEntry
from schemas.codec import encode
from schemas.events import (
    GapOpened,
    HostDrained,
    HostEvent,
    HostFound,
    HostHeard,
    HostLost,
    MeteringAdjusted,
    VmCreated,
    VmEvent,
    VmStopped,
    decode_host_event,
)
from schemas.ids import new_id
from schemas.vms import Counters, ExitReason
from tests.support.batcher import answered
from tests.support.nats import NatsServer, bus_with_streams
from tests.support.store import embedded_store

VM_EVENTS, GAPS, AUDIT, HOST_AUDIT = FEEDS


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def store(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Store]:
    async with embedded_store(tmp_path_factory.mktemp("feeds") / "store") as opened:
        yield opened


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[Bus]:
    async with bus_with_streams(tmp_path / "nats") as (_, connected):
        yield connected


class Spoiled:
    """A store that is away at first, and that never takes one of the rows."""

    def __init__(self, store: Store, *, away: int, poison: str) -> None:
        self._store = store
        self._away = away
        self._poison = poison
        self.tries = 0

    async def insert(self, table: str, rows: pa.Table, *, token: str) -> None:
        self.tries += 1
        if self.tries <= self._away:
            raise TransientError("away")
        if self._poison in rows.column("reason").to_pylist():
            raise PoisonError("bad_data", "refused")
        await self._store.insert(table, rows, token=token)


class Never:
    """A store that nobody may reach."""

    async def insert(self, table: str, rows: pa.Table, *, token: str) -> None:
        raise AssertionError(f"{rows.num_rows} rows for {table}")


@asynccontextmanager
async def feeding(bus: Bus, sink: Any, feed: Feed) -> AsyncIterator[None]:
    """The feed runs for the length of the block, and has answered for all at its end."""
    stop = asyncio.Event()
    feeder = Feeder(bus, sink, feed, Instruments(), SystemClock())
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        running = group.create_task(feeder.run(stop), name="feeder")
        yield
        await answered(bus, feed.stream, feed.durable)
        stop.set()
        await running


def us(instant: datetime) -> int:
    """Unix microseconds."""
    return (instant - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


async def publish(bus: Bus, subject: str, data: bytes) -> None:
    await Publisher(bus).publish(subject, data, msg_id=str(new_id()))


def common(customer: str) -> dict[str, Any]:
    return {
        "event_id": new_id(),
        "at": utc_now(),
        "customer_id": customer,
        "vm_id": new_id(),
        "host_id": "h1",
    }


def entry(customer: str, reason: str = "why") -> AuditEntry:
    return AuditEntry(
        event_id=new_id(),
        at=utc_now(),
        actor="someone",
        customer_id=customer,
        action="replay",
        target="a stream",
        reason=reason,
        outcome="succeeded",
        details={"phase": "ended", "note": "it's `so` \\ \n"},
    )


async def test_an_event_is_a_row_however_often_it_comes(bus: Bus, store: Store) -> None:
    """Sent twice, and all of it delivered again to a new consumer: one row each, fields kept."""
    created = VmCreated(**common("twice"), command_id=new_id(), incarnation=3)
    stopped = VmStopped(
        **common("twice"), reason=ExitReason.CRASHED, final_counters=Counters(cpu_ns=2**60)
    )
    events: tuple[VmEvent, ...] = (created, stopped)
    for _ in range(2):
        for event in events:
            await publish(bus, subjects.vm_event(event), encode(event))
    for _ in range(2):
        async with feeding(bus, store, VM_EVENTS):
            pass
        await bus.js.delete_consumer(VM_EVENTS.stream, VM_EVENTS.durable)
    rows = await store.query(
        "SELECT event_id, vm_id, toUnixTimestamp64Micro(at), type, host, incarnation, command_id,"
        " reason, body, recorded_at >= at FROM vm_events FINAL"
        " WHERE customer_id = 'twice' ORDER BY type"
    )
    assert [tuple(row) for row in rows] == [
        (created.event_id, created.vm_id, us(created.at), "vm_created", "h1", 3, created.command_id,
         "", encode(created).decode(), True),
        (stopped.event_id, stopped.vm_id, us(stopped.at), "vm_stopped", "h1", 0, None,
         "crashed", encode(stopped).decode(), True),
    ]  # fmt: skip


async def test_gaps_and_silences_are_stored_and_other_host_events_are_not(
    bus: Bus, store: Store
) -> None:
    """What bears on metering goes into `metering_gaps`."""
    base: dict[str, Any] = {"at": utc_now(), "host_id": "gappy"}
    gap = GapOpened(event_id=new_id(), **base, run_id=new_id(), seq_first=5, seq_last=9)
    heard = HostHeard(event_id=new_id(), **base, silent_ms=12_000)
    drained = HostDrained(event_id=new_id(), **base)
    now = utc_now()
    late = MeteringAdjusted(
        event_id=new_id(), **base, lost_at=now, first_tick=now, last_tick=now, frames=2, rows=6
    )
    lost = HostLost(event_id=new_id(), **base, reason="burnt", requested_by="ann")
    found = HostFound(event_id=new_id(), **base)
    events: tuple[HostEvent, ...] = (gap, heard, drained, late, lost, found)
    for event in events:
        await publish(bus, subjects.host_event(event), encode(event))
    async with feeding(bus, store, GAPS):
        pass
    rows = await store.query(
        "SELECT event_id, type, run_id, seq_first, seq_last, silent_ms"
        " FROM metering_gaps WHERE host = 'gappy' ORDER BY type"
    )
    assert [tuple(row) for row in rows] == [
        (gap.event_id, "gap_opened", gap.run_id, 5, 9, None),
        (found.event_id, "host_found", None, None, None, None),
        (heard.event_id, "host_heard", None, None, None, 12_000),
        (lost.event_id, "host_lost", None, None, None, None),
        (late.event_id, "metering_adjusted", None, None, None, None),
    ]
    (body,) = await store.query(
        "SELECT body FROM metering_gaps WHERE host = 'gappy' AND type = 'metering_adjusted'"
    )
    assert decode_host_event(body[0].encode()) == late


async def test_what_cannot_be_stored_is_left_out_and_the_rest_goes_on(
    bus: Bus, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """Garbage, an entry on another's subject, one that the store refuses; the store was away."""
    entries = [entry("mixed", "a"), entry("mixed", "refused"), entry("mixed", "b")]
    await publish(bus, "audit.mixed.replay", b"{garbage")
    await publish(bus, "audit.mixed.replay", encode(entry("other")))
    for one in entries:
        await publish(bus, subjects.audit(one), encode(one))
    sink = Spoiled(store, away=2, poison="refused")
    async with feeding(bus, sink, AUDIT):
        pass
    rows = await store.query(
        "SELECT event_id, actor, action, target, reason, outcome, details FROM audit_log"
        " WHERE customer_id IN ('mixed', 'other') ORDER BY reason"
    )
    assert [tuple(row) for row in rows] == [
        (e.event_id, e.actor, e.action, e.target, e.reason, e.outcome, e.details)
        for e in (entries[0], entries[2])
    ]
    assert sink.tries > 3
    refused = [line for line in caplog.messages if "event.refused" in line]
    assert len(refused) == 3
    for reason, line in zip(("not_json", "wrong_subject", "bad_data"), refused, strict=True):
        assert reason in line
        assert "AUDIT" in line
    assert (await bus.js.stream_info("AUDIT")).state.messages == 5


async def test_a_host_writes_of_its_own_refusals_and_of_nothing_else(
    bus: Bus, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """An entry in another's name, of another act or for a customer is left out."""
    good = replace(
        entry("operator", "not_json"), actor="agent@h1", action="refuse-command", outcome="refused"
    )
    for forged in (
        replace(good, actor="agent@h2"),
        replace(good, customer_id="acme"),
        replace(good, action="boot-vm"),
        replace(good, outcome="succeeded"),
    ):
        await publish(bus, subjects.host_audit("h1"), encode(forged))
    await publish(bus, subjects.host_audit("h1"), encode(good))
    async with feeding(bus, store, HOST_AUDIT):
        pass
    rows = await store.query("SELECT actor, reason FROM audit_log WHERE reason = 'not_json'")
    assert [tuple(row) for row in rows] == [("agent@h1", "not_json")]
    refused = [line for line in caplog.messages if "event.refused" in line]
    assert len(refused) == 4
    assert all("not_the_hosts" in line for line in refused)


async def test_what_a_store_that_is_away_did_not_take_comes_again(bus: Bus, store: Store) -> None:
    """Told to stop meanwhile the feed ends without an ack, and the next one stores it."""
    one = entry("again")
    await publish(bus, subjects.audit(one), encode(one))
    stop = asyncio.Event()
    sink = Spoiled(store, away=10**6, poison="")
    feeder = Feeder(bus, sink, AUDIT, Instruments(), SystemClock())
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        group.create_task(feeder.run(stop), name="feeder")
        while sink.tries < 2:
            await asyncio.sleep(0.02)
        stop.set()
    info = await bus.js.consumer_info(AUDIT.stream, AUDIT.durable)
    assert info.num_ack_pending == 1
    async with feeding(bus, store, AUDIT):
        pass
    rows = await store.query("SELECT event_id FROM audit_log WHERE customer_id = 'again'")
    assert [row[0] for row in rows] == [one.event_id]


async def test_a_feed_without_its_stream_ends_when_told_to(tmp_path: Path) -> None:
    """Streams that nobody has applied yet hold up no stop."""
    server = NatsServer(tmp_path / "bare")
    await server.start()
    try:
        async with Bus.connect(server.settings(), name="test") as bus:
            stop = asyncio.Event()
            feeder = Feeder(bus, Never(), AUDIT, Instruments(), SystemClock())
            async with asyncio.timeout(10), asyncio.TaskGroup() as group:
                group.create_task(feeder.run(stop), name="feeder")
                await asyncio.sleep(0)
                stop.set()
    finally:
        await server.kill()
