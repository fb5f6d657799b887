"""A host that is silent for the configured time: collectors, batcher, nats-server, bills."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from runtime.buckets import Bucket
from runtime.bus import Bus
from runtime.errors import TransientError
from runtime.reading import read_stream
from schemas import subjects
from schemas.codec import encode
from schemas.events import HostFound, HostLost, MeteringAdjusted, decode_host_event
from schemas.hosts import HostLoss, decode_host_loss
from schemas.ids import new_id
from schemas.usage import UsageQuery, UsageReport, decode_usage_reply
from schemas.vms import VmRecord, decode_vm_record
from tests.support.batcher import batcher_process
from tests.support.collector import collector_process, roll_of
from tests.support.frames import record
from tests.support.metered_host import MeteredHost, metered_host
from tests.support.nats import NatsServer, bus_with_streams
from tests.support.replays import audit_entries

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
VM_A, VM_B = new_id(), new_id()
TICK = timedelta(milliseconds=100)
SETTINGS = {"silent_after_s": "1.5", "host_lost_after_s": "3"}


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[NatsServer, Bus]]:
    async with bus_with_streams(tmp_path / "nats") as pair:
        yield pair


async def write(bus: Bus, *records: VmRecord) -> None:
    bucket = Bucket(bus, subjects.VM_SPECS, decode_vm_record)
    for one in records:
        await bucket.put(subjects.vm_key(one.customer_id, one.vm_id), one)


@asynccontextmanager
async def living_host(
    bus: Bus, host: str, vm_id: UUID, folder: Path, base_ms: int
) -> AsyncIterator[MeteredHost]:
    """A host that ticks as the time goes, whether it can send or not."""

    async def live(one: MeteredHost) -> None:
        while True:
            due = (time.time() * 1000 - base_ms) // 100
            await one.tick(max(0, int(due) - one.ticks))
            await asyncio.sleep(0.05)

    async with metered_host(bus, host, vm_id, folder / host, base_ms=base_ms) as one:
        living = asyncio.create_task(live(one), name=f"live-{host}")
        try:
            yield one
        finally:
            living.cancel()
            await asyncio.wait({living})


async def ask(bus: Bus, start: datetime, end: datetime) -> UsageReport:
    """The usage of both VMs."""
    query = encode(UsageQuery(start=start, end=end))
    async with asyncio.timeout(60):
        while True:
            try:
                answer = await bus.request(subjects.usage_query("acme"), query, timeout_s=10)
            except TransientError:  # no batcher listens yet
                await asyncio.sleep(0.1)
                continue
            report = decode_usage_reply(answer.data).report
            if report is not None:
                return report
            await asyncio.sleep(0.1)


async def complete(bus: Bus, start: datetime, end: datetime, *, lost: bool) -> UsageReport:
    """The answer, once it is complete, and waits for all hosts or does not."""
    async with asyncio.timeout(60):
        while True:
            answer = await ask(bus, start, end)
            if answer.complete and bool(answer.lost_hosts) is lost:
                return answer
            await asyncio.sleep(0.1)


async def declared(bus: Bus, host: str) -> HostLoss:
    """The declaration, once it stands."""
    bucket = Bucket(bus, subjects.LOST_HOSTS, decode_host_loss)
    async with asyncio.timeout(60):
        while (entry := await bucket.get(host)) is None:
            await asyncio.sleep(0.1)
    return entry.value


async def found(bus: Bus, host: str) -> None:
    """Return once nothing of the kind stands, and that was told."""
    bucket = Bucket(bus, subjects.LOST_HOSTS, decode_host_loss)
    async with asyncio.timeout(60):
        while await bucket.get(host) is not None:
            await asyncio.sleep(0.1)
        while not any(isinstance(event, HostFound) for event in await host_events(bus)):
            await asyncio.sleep(0.1)


async def host_events(bus: Bus) -> list[HostLost | HostFound | MeteringAdjusted]:
    events = [decode_host_event(m.data) for m in await read_stream(bus, subjects.HOST_EVENTS)]
    return [e for e in events if isinstance(e, HostLost | HostFound | MeteringAdjusted)]


async def test_a_silent_host_is_given_up_and_what_it_sends_later_is_listed(
    served: tuple[NatsServer, Bus], tmp_path: Path
) -> None:
    """Over a restart of the collector: answers pass it, name it, and wait again once it is back."""
    server, bus = served
    base_ms = time.time_ns() // 10**8 * 100 - 1000
    start = EPOCH + timedelta(milliseconds=base_ms)
    await write(bus, record(VM_A, host="host-a"), record(VM_B, host="host-b"))
    async with (
        AsyncExitStack() as stack,
        collector_process(tmp_path, server.url, **SETTINGS) as collector,
        batcher_process(tmp_path, server.url, complete_margin_s="1"),
    ):
        for host, vm_id in (("host-a", VM_A), ("host-b", VM_B)):
            one = await stack.enter_async_context(living_host(bus, host, vm_id, tmp_path, base_ms))
        early = await complete(bus, start, start + timedelta(seconds=1), lost=False)
        assert [row.samples for row in early.vms] == [10, 10]
        one.away = True
        await collector.kill()
        await collector.start()
        loss = await declared(bus, "host-b")
        assert loss.automatic
        closed_at = loss.declared_at
        closed = await complete(bus, start, closed_at, lost=True)
        assert closed.lost_hosts == ("host-b",)
        one.away = False
        await one.arrived()
        after = await complete(bus, start, closed_at, lost=False)
        await found(bus, "host-b")
        again = await complete(bus, start, start + timedelta(seconds=1), lost=False)
        assert (again.vms, again.totals) == (early.vms, early.totals)
        assert await collector.stop() == 0
    events = await host_events(bus)
    assert {e.host_id for e in events} == {"host-b"}
    late = [event for event in events if isinstance(event, MeteringAdjusted)]
    assert {event.lost_at for event in late} == {loss.declared_at}
    more = samples(after, VM_B) - samples(closed, VM_B)
    assert more > 0
    assert sum(event.rows for event in late) == sum(event.frames for event in late) >= more
    assert min(event.first_tick for event in late) <= start + samples(closed, VM_B) * TICK
    assert samples(after, VM_A) == samples(closed, VM_A)
    assert [type(e) for e in events if not isinstance(e, MeteringAdjusted)] == [
        HostLost, HostFound,
    ]  # fmt: skip
    acts = [(e.action, e.outcome) for e in await audit_entries(bus)]
    assert acts == [
        ("host-lost", "under_way"), ("host-lost", "succeeded"),
        ("host-found", "under_way"), ("host-found", "succeeded"),
    ]  # fmt: skip


def samples(answer: UsageReport, vm_id: UUID) -> int:
    return next(row.samples for row in answer.vms if row.vm_id == vm_id)


async def test_two_collectors_make_one_declaration(
    served: tuple[NatsServer, Bus], tmp_path: Path
) -> None:
    """Also if one of them dies; hosts that nobody waits for are not declared."""
    server, bus = served
    hosts = [f"host-{number}" for number in range(6)]
    await write(bus, *(record(new_id(), host=host) for host in hosts))
    roll = await roll_of(bus)
    async with (
        collector_process(tmp_path, server.url, name="one", **SETTINGS) as one,
        collector_process(tmp_path, server.url, name="two", **SETTINGS) as two,
    ):
        await roll.spread_over(2)
        for host in hosts:
            await declared(bus, host)
        await one.kill()
        async with asyncio.timeout(30):
            while len({e.event_id for e in await host_events(bus)}) < len(hosts):
                await asyncio.sleep(0.1)
        assert await two.stop() == 0
    info = await bus.js.stream_info(f"KV_{subjects.LOST_HOSTS}")
    assert info.state.last_seq == len(hosts)
    made = [e.target for e in await audit_entries(bus) if e.outcome == "succeeded"]
    assert sorted(made) == hosts
    events = await host_events(bus)
    assert {type(event) for event in events} == {HostLost}
    assert {event.host_id for event in events} == set(hosts)
