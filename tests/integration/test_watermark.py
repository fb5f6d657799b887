"""Until when an answer is complete: agents' sender and spool, nats-server, collector, batcher."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import msgspec
import pytest

from runtime.buckets import Bucket
from runtime.bus import Bus
from runtime.errors import TransientError
from runtime.publisher import Publisher
from runtime.reading import read_stream
from schemas import subjects
from schemas.codec import encode
from schemas.hosts import HostLoss, decode_host_loss
from schemas.ids import new_id
from schemas.usage import UsageQuery, UsageReport, decode_usage_reply
from schemas.vms import VmRecord, decode_vm_record
from tests.support.batcher import batcher_process
from tests.support.clickhouse_door import clickhouse_door
from tests.support.collector import collector_process
from tests.support.frames import record
from tests.support.metered_host import MeteredHost, metered_host
from tests.support.nats import NatsServer, bus_with_streams

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
BASE_MS = time.time_ns() // 10**9 * 1000 - 600_000
VM_A, VM_B = new_id(), new_id()


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[NatsServer, Bus]]:
    async with bus_with_streams(tmp_path / "nats") as pair:
        yield pair


def at(ticks: int) -> datetime:
    """The time of a tick."""
    return EPOCH + timedelta(milliseconds=BASE_MS + 100 * ticks)


async def write(bus: Bus, *records: VmRecord) -> None:
    bucket = Bucket(bus, subjects.VM_SPECS, decode_vm_record)
    for one in records:
        await bucket.put(subjects.vm_key(one.customer_id, one.vm_id), one)


async def ask(bus: Bus, ticks: int, *vm_ids: UUID, start: int = 0) -> UsageReport:
    """Usage before a tick."""
    query = encode(UsageQuery(start=at(start), end=at(ticks), vm_ids=vm_ids))
    async with asyncio.timeout(60):
        while True:
            try:
                answer = await bus.request(subjects.usage_query("acme"), query, timeout_s=10)
            except TransientError:  # no batcher listens yet
                await asyncio.sleep(0.1)
                continue
            reply = decode_usage_reply(answer.data)
            if reply.report is not None:
                return reply.report
            await asyncio.sleep(0.1)


async def complete(bus: Bus, ticks: int, *vm_ids: UUID, start: int = 0) -> UsageReport:
    """The answer, once it is complete."""
    async with asyncio.timeout(60):
        while not (answer := await ask(bus, ticks, *vm_ids, start=start)).complete:
            await asyncio.sleep(0.1)
    return answer


def without_time(answer: UsageReport) -> UsageReport:
    return msgspec.structs.replace(answer, complete_until=None)


async def replay(bus: Bus) -> None:
    """Every raw frame once more, under new ids."""
    publisher = Publisher(bus)
    for message in await read_stream(bus, subjects.METRICS_RAW):
        subject = subjects.metrics_raw(subjects.host_of_metrics(message.subject))
        await publisher.publish(subject, message.data, msg_id=str(new_id()))


async def two_hosts(stack: AsyncExitStack, bus: Bus, folder: Path) -> list[MeteredHost]:
    await write(bus, record(VM_A, host="host-a"), record(VM_B, host="host-b"))
    return [
        await stack.enter_async_context(
            metered_host(bus, host, vm_id, folder / host, base_ms=BASE_MS)
        )
        for host, vm_id in (("host-a", VM_A), ("host-b", VM_B))
    ]


async def test_a_host_whose_frames_wait_in_its_spool_holds_the_time_back(
    served: tuple[NatsServer, Bus], tmp_path: Path
) -> None:
    """Until they have come; and what was complete before stays so, over kills and replays too."""
    server, bus = served
    async with (
        AsyncExitStack() as stack,
        collector_process(tmp_path, server.url) as collector,
        batcher_process(tmp_path, server.url) as batcher,
    ):
        a, b = await two_hosts(stack, bus, tmp_path)
        assert (await ask(bus, 20)).complete_until is None
        await a.tick(21)
        assert (await complete(bus, 20, VM_A)).complete_until == at(20)
        assert (await ask(bus, 20)).complete_until is None
        await b.tick(21)
        before = await complete(bus, 20)
        assert before.complete_until == at(20)
        assert [row.samples for row in before.vms] == [20, 20]

        b.away = True
        await b.tick(20)
        await a.tick(20)
        assert (await complete(bus, 40, VM_A)).complete_until == at(40)
        held = await ask(bus, 40)
        assert (held.complete_until, held.complete) == (at(20), False)
        assert sorted(row.samples for row in held.vms) == [21, 40]

        await collector.kill()
        await batcher.kill()
        await collector.start()
        await batcher.start()
        assert without_time(await ask(bus, 20)) == without_time(before)

        b.away = False
        await b.arrived()
        await b.tick(10)
        await a.tick(10)
        after = await complete(bus, 40)
        assert [row.samples for row in after.vms] == [40, 40]
        assert after.totals["uptime_ms"] == 2 * 39 * 100
        assert without_time(await ask(bus, 20)) == without_time(before)

        await replay(bus)
        await a.tick(20)
        await b.tick(20)
        await complete(bus, 60)
        assert without_time(await ask(bus, 20)) == without_time(before)
        assert without_time(await ask(bus, 40)) == without_time(after)


async def test_a_vm_on_a_host_that_has_not_told_holds_the_time_back(
    served: tuple[NatsServer, Bus], tmp_path: Path
) -> None:
    """From the moment its record stands; once it is deleted, while it may have been metered."""
    server, bus = served
    young = record(new_id(), host="host-c")
    async with (
        AsyncExitStack() as stack,
        collector_process(tmp_path, server.url),
        batcher_process(tmp_path, server.url),
    ):
        for host in await two_hosts(stack, bus, tmp_path):
            await host.tick(21)
        await complete(bus, 20)
        await write(bus, young)
        assert (await ask(bus, 20)).complete_until is None
        assert (await ask(bus, 20, VM_A, VM_B)).complete
        assert (await ask(bus, 20, young.vm_id)).complete_until is None
        # Its host's frames from long after its end: nothing of it can be missing.
        await write(bus, msgspec.structs.replace(young, deleted_at=at(-600)))
        late = await stack.enter_async_context(
            metered_host(bus, "host-c", new_id(), tmp_path / "c", base_ms=BASE_MS - 10_000)
        )
        await late.tick(1)
        assert (await complete(bus, 20)).complete_until == at(20)


async def test_a_host_that_is_lost_is_not_waited_for(
    served: tuple[NatsServer, Bus], tmp_path: Path
) -> None:
    """The answer names it; what comes from it all the same counts; once found, it is waited for."""
    server, bus = served
    losses = Bucket(bus, subjects.LOST_HOSTS, decode_host_loss)
    loss = HostLoss(
        host_id="host-b", reason="burnt", requested_by="ops", declared_at=datetime.now(UTC)
    )
    async with (
        AsyncExitStack() as stack,
        collector_process(tmp_path, server.url),
        batcher_process(tmp_path, server.url),
    ):
        a, b = await two_hosts(stack, bus, tmp_path)
        await a.tick(41)
        await b.tick(21)
        assert (await complete(bus, 20)).lost_hosts == ()
        await losses.put("host-b", loss)
        without = await complete(bus, 40)
        assert without.complete_until == at(40)
        assert without.lost_hosts == ("host-b",)
        assert [row.samples for row in without.vms] == [40, 21]
        # What was complete before it was lost needs no such word.
        assert (await ask(bus, 20, VM_A)).lost_hosts == ()
        await b.tick(20)
        async with asyncio.timeout(30):
            while sum(row.samples for row in (await ask(bus, 40)).vms) < 2 * 40:
                await asyncio.sleep(0.05)
        await b.tick(10)
        await losses.delete("host-b")
        async with asyncio.timeout(30):
            while (await ask(bus, 40)).lost_hosts:
                await asyncio.sleep(0.05)
        await complete(bus, 40)


async def test_a_host_that_a_vm_has_left_is_waited_for_and_its_late_frames_are_billed(
    served: tuple[NatsServer, Bus], tmp_path: Path
) -> None:
    """What it has of the VM from before the move; a window from after it needs nothing of it."""
    server, bus = served
    first = record(VM_A, host="host-a")
    await write(bus, first)
    async with (
        AsyncExitStack() as stack,
        collector_process(tmp_path, server.url),
        batcher_process(tmp_path, server.url, complete_margin_s="0"),
        metered_host(bus, "host-a", VM_A, tmp_path / "a", base_ms=BASE_MS) as a,
    ):
        await a.tick(21)
        await complete(bus, 20)
        a.away = True
        await a.tick(20)
        await write(bus, first.moved("host-b", last_incarnation=1, left_at=at(41)))
        assert (await ask(bus, 60)).complete_until is None
        b = await stack.enter_async_context(
            metered_host(bus, "host-b", VM_A, tmp_path / "b", base_ms=BASE_MS + 4100, incarnation=2)
        )
        await b.tick(21)
        after_the_move = await complete(bus, 60, start=41)
        assert [(row.samples, row.uptime_ms) for row in after_the_move.vms] == [(19, 1800)]
        held = await ask(bus, 60)
        assert (held.complete_until, held.complete) == (at(20), False)
        assert sum(row.samples for row in held.vms) == 21 + 19

        a.empty = True
        a.away = False
        await a.tick(12)
        await b.tick(1)
        whole = await complete(bus, 60)
        assert [row.incarnations for row in whole.vms] == [2]
        assert [row.samples for row in whole.vms] == [41 + 19]
        assert whole.totals["uptime_ms"] == 4000 + 1800
        assert without_time(await ask(bus, 60, start=41)) == without_time(after_the_move)
        assert await read_stream(bus, subjects.METRICS_REJECTED) == []
        # Only until it has come past the move: later it may be away.
        await b.tick(40)
        await complete(bus, 100)


async def test_nobody_s_vms_are_complete_until_a_moment_ago(
    served: tuple[NatsServer, Bus], tmp_path: Path
) -> None:
    """A VM that is made now cannot have been metered before that moment."""
    server, bus = served
    async with batcher_process(tmp_path, server.url, complete_margin_s="30"):
        answer = await ask(bus, 20)
    assert answer.complete
    assert answer.complete_until is not None
    age = datetime.now(UTC) - answer.complete_until
    assert timedelta(seconds=30) <= age < timedelta(seconds=60)


async def test_a_batcher_that_dies_between_insert_and_ack_changes_nothing(
    served: tuple[NatsServer, Bus], tmp_path: Path
) -> None:
    """The store has the frames, the bus does not know: the time waits for the next batcher."""
    server, bus = served
    with clickhouse_door(tmp_path / "store", password="secret") as door:
        async with (
            AsyncExitStack() as stack,
            collector_process(tmp_path, server.url),
            batcher_process(
                tmp_path, server.url, store_path="", store_url=door.url, store_password="secret"
            ) as batcher,
        ):
            a, b = await two_hosts(stack, bus, tmp_path)
            await a.tick(21)
            await b.tick(21)
            before = await complete(bus, 20)
            # Whatever comes next is stored, and never answered.
            door.slow_s = 5.0
            door.faults.extend(["slow"] * 3)
            await a.tick(20)
            await b.tick(20)
            async with asyncio.timeout(30):
                while sum(row.samples for row in (await ask(bus, 41)).vms) <= 2 * 21:
                    await asyncio.sleep(0.05)
            dead = await ask(bus, 40)
            assert (dead.complete_until, dead.complete) == (at(20), False)
            await batcher.kill()
            door.faults.clear()
            await batcher.start()
            after = await complete(bus, 40)
            assert [row.samples for row in after.vms] == [40, 40]
            assert without_time(await ask(bus, 20)) == without_time(before)
