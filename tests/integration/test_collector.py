"""The collector as a process on a real nats-server: killed, and fed what it must refuse."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import msgspec
import nats.errors
import nats.js.errors
import pytest
from nats.aio.msg import Msg

from runtime.buckets import Bucket
from runtime.bus import Bus
from runtime.clock import utc_now
from runtime.publisher import Publisher
from runtime.reading import read_stream
from schemas import subjects
from schemas.events import (
    GapClosed,
    GapOpened,
    HostSuspected,
    MeteringAdjusted,
    decode_host_event,
)
from schemas.frames import (
    HEADER_ORIGIN_SEQUENCE,
    HEADER_REASON,
    Frame,
    RejectReason,
    decode_enriched_frame,
    decode_frame,
    encode_frame,
)
from schemas.hosts import HostLoss, decode_host_loss
from schemas.ids import new_id
from schemas.vms import VmRecord, decode_vm_record
from tests.support.collector import all_collected, collector_process
from tests.support.frames import busy_frames, record
from tests.support.nats import NatsServer, bus_with_streams

ENDLESS = bytes([255] * 8)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[NatsServer, Bus]]:
    async with bus_with_streams(tmp_path / "nats") as pair:
        yield pair


async def put(bus: Bus, *records: VmRecord) -> None:
    bucket = Bucket(bus, subjects.VM_SPECS, decode_vm_record)
    for one in records:
        await bucket.put(subjects.vm_key(one.customer_id, one.vm_id), one)


async def publish(publisher: Publisher, frame: Frame) -> None:
    await publisher.publish(
        subjects.metrics_raw(frame.host), encode_frame(frame), msg_id=frame.msg_id
    )


async def feed(bus: Bus, publisher: Publisher, frames: list[Frame]) -> None:
    """Publish all, at most 100 ahead of the collector, so that it is killed with work in hand."""
    for place, frame in enumerate(frames):
        if place % 20 == 0:
            await reach(bus, subjects.METRICS_ENRICHED, place - 100)
        await publish(publisher, frame)


async def stored(bus: Bus, stream: str) -> int:
    """How many messages a stream holds; 0 while the server does not say."""
    try:
        return (await bus.js.stream_info(stream)).state.messages
    except (nats.errors.Error, nats.js.errors.Error, OSError):
        return 0


async def reach(bus: Bus, stream: str, messages: int) -> None:
    async with asyncio.timeout(60):
        while await stored(bus, stream) < messages:
            await asyncio.sleep(0.02)


def rows_of(vm_ids: bytes) -> list[UUID]:
    return [UUID(bytes=vm_ids[i : i + 16]) for i in range(0, len(vm_ids), 16)]


def recent_ms(ticks: int) -> int:
    """A tick such that this many more end now."""
    return time.time_ns() // 10**8 * 100 - ticks * 100


def load(count: int, hosts: int = 3) -> tuple[list[VmRecord], list[Frame]]:
    """Records and interleaved frames of several hosts; on every tenth tick one row is bad."""
    records: list[VmRecord] = []
    streams: list[list[Frame]] = []
    for number in range(hosts):
        host = f"host-{number}"
        vm_ids = [new_id() for _ in range(5)]
        records += [record(vm_id, host=host, customer=f"c{i}") for i, vm_id in enumerate(vm_ids)]
        streams.append(
            [
                msgspec.structs.replace(f, net_rx_bytes=ENDLESS + f.net_rx_bytes[8:])
                if f.seq % 10 == 3
                else f
                for f in busy_frames(vm_ids, count, start_ms=recent_ms(count), host=host)
            ]
        )
    return records, [f for tick in zip(*streams, strict=True) for f in tick]


async def check_nothing_is_lost(bus: Bus, frames: list[Frame]) -> None:
    """Each frame came out once; its bad row is with the rejects, the others are with it."""
    enriched = [decode_enriched_frame(m.data) for m in await read_stream(bus, "METRICS_ENRICHED")]
    assert Counter(e.msg_id for e in enriched) == Counter(f.msg_id for f in frames)
    rejected = [decode_frame(m.data) for m in await read_stream(bus, "METRICS_REJECTED")]
    refused = {f.msg_id: rows_of(f.vm_ids) for f in rejected}
    assert len(refused) == len(rejected)
    passed = {e.msg_id: rows_of(e.vm_ids) for e in enriched}
    for frame in frames:
        rows = rows_of(frame.vm_ids)
        bad = rows[:1] if frame.seq % 10 == 3 else []
        assert refused.get(frame.msg_id, []) == bad
        assert passed[frame.msg_id] == [vm for vm in rows if vm not in bad]


@pytest.mark.chaos
async def test_every_frame_comes_out_once_although_the_collector_is_killed(
    served: tuple[NatsServer, Bus], tmp_path: Path
) -> None:
    """SIGKILL twice in mid-work, then started again: no frame is lost, none comes out twice."""
    server, bus = served
    records, frames = load(400)
    await put(bus, *records)
    publisher = Publisher(bus)
    async with collector_process(
        tmp_path, server.url, ack_wait_s="1", max_batch="16", max_ack_pending="64"
    ) as collector:
        async with asyncio.TaskGroup() as group:
            feeding = group.create_task(feed(bus, publisher, frames), name="feed")
            for reached in (100, 400):
                await reach(bus, subjects.METRICS_ENRICHED, reached)
                assert not feeding.done()
                await collector.kill()
                await collector.start()
        await all_collected(bus)
        assert await collector.stop() == 0
    await check_nothing_is_lost(bus, frames)


@pytest.mark.chaos
async def test_every_frame_comes_out_once_although_nats_is_killed(
    served: tuple[NatsServer, Bus], tmp_path: Path
) -> None:
    """SIGKILL of nats-server under load, twice: the collector goes on by itself."""
    server, bus = served
    records, frames = load(400)
    await put(bus, *records)
    publisher = Publisher(bus, ack_timeout_s=1)
    async with collector_process(tmp_path, server.url, ack_wait_s="2") as collector:
        async with asyncio.TaskGroup() as group:
            feeding = group.create_task(feed(bus, publisher, frames), name="feed")
            for reached in (100, 400):
                await reach(bus, subjects.METRICS_ENRICHED, reached)
                assert not feeding.done()
                epoch = bus.epoch
                await server.kill()
                await server.start()
                await bus.reconnected_after(epoch)
        await all_collected(bus)
        assert await collector.stop() == 0
    await check_nothing_is_lost(bus, frames)


async def test_what_is_bad_is_set_aside_and_the_rest_goes_on(
    served: tuple[NatsServer, Bus], tmp_path: Path
) -> None:
    """Garbage, a frame on another host's subject, a foreign VM and an unknown one."""
    server, bus = served
    own, foreign, unknown = new_id(), new_id(), new_id()
    await put(bus, record(own, host="h1"), record(foreign, host="h2"))
    publisher = Publisher(bus)
    first, second = busy_frames([own, foreign, unknown], 2, start_ms=recent_ms(2), host="h1")
    async with collector_process(tmp_path, server.url, unknown_wait_s="0.5") as collector:
        await publisher.publish("metrics.raw.h1", b"\xc1 garbage", msg_id="garbage")
        await publisher.publish("metrics.raw.h2", encode_frame(first), msg_id="wrong-host")
        await publish(publisher, first)
        await publish(publisher, second)
        await all_collected(bus)
        assert await collector.stop() == 0
    rejected = await read_stream(bus, subjects.METRICS_REJECTED)
    seen = Counter((m.subject, m.headers[HEADER_REASON]) for m in rejected)
    assert seen == {
        ("metrics.rejected.not_msgpack.h1", RejectReason.NOT_MSGPACK): 1,
        ("metrics.rejected.wrong_host.h2", RejectReason.WRONG_HOST): 1,
        ("metrics.rejected.foreign_vm.h1", RejectReason.FOREIGN_VM): 2,
        ("metrics.rejected.unknown_vm.h1", RejectReason.UNKNOWN_VM): 2,
    }
    origins = {m.headers[HEADER_ORIGIN_SEQUENCE] for m in rejected}
    assert origins == {"1", "2", "3", "4"}
    enriched = [decode_enriched_frame(m.data) for m in await read_stream(bus, "METRICS_ENRICHED")]
    assert sorted(e.seq for e in enriched) == [0, 1]
    assert all(rows_of(e.vm_ids) == [own] for e in enriched)


async def test_a_record_that_comes_after_its_first_frame_is_waited_for(
    served: tuple[NatsServer, Bus], tmp_path: Path
) -> None:
    """A frame may overtake the record it needs; none of its rows is refused for that."""
    server, bus = served
    vm_id = new_id()
    (frame,) = busy_frames([vm_id], 1, start_ms=recent_ms(1), host="h1")
    durable = f"collector-{subjects.partition_of('h1', 8)}"
    async with collector_process(tmp_path, server.url, unknown_wait_s="30") as collector:
        await publish(Publisher(bus), frame)
        async with asyncio.timeout(20):
            while True:
                try:
                    info = await bus.js.consumer_info(subjects.METRICS_RAW, durable)
                except nats.js.errors.NotFoundError:
                    await asyncio.sleep(0.05)
                    continue
                if info.num_redelivered:
                    break
                await asyncio.sleep(0.05)
        await put(bus, record(vm_id, host="h1"))
        await all_collected(bus)
        assert await collector.stop() == 0
    assert await stored(bus, subjects.METRICS_REJECTED) == 0
    (message,) = await read_stream(bus, subjects.METRICS_ENRICHED)
    assert rows_of(decode_enriched_frame(message.data).vm_ids) == [vm_id]


async def test_gaps_and_silence_are_told_on_the_bus(
    served: tuple[NatsServer, Bus], tmp_path: Path
) -> None:
    """A skipped frame opens a gap and closes it when it comes; a quiet host is suspected."""
    server, bus = served
    frames = list(busy_frames([], 3, start_ms=recent_ms(3), host="h1"))
    publisher = Publisher(bus)
    told: asyncio.Queue[bytes] = asyncio.Queue()

    async def listen(message: Msg) -> None:
        await told.put(message.data)

    subscription = await bus.client.subscribe("host.evt.h1.>", cb=listen)
    async with collector_process(tmp_path, server.url) as collector, asyncio.timeout(20):
        for place in (0, 2, 1):
            await publish(publisher, frames[place])
        events = [decode_host_event(await told.get()) for _ in range(3)]
        assert [type(e) for e in events] == [GapOpened, GapClosed, HostSuspected]
        assert await collector.stop() == 0
    await subscription.unsubscribe()


async def lose(bus: Bus, host: str) -> None:
    """Declare a host lost now."""
    loss = HostLoss(host_id=host, reason="burnt", requested_by="ops", declared_at=utc_now())
    await Bucket(bus, subjects.LOST_HOSTS, decode_host_loss).put(host, loss)


async def adjustments(bus: Bus) -> list[MeteringAdjusted]:
    """What has been told of late frames."""
    events = [decode_host_event(m.data) for m in await read_stream(bus, subjects.HOST_EVENTS)]
    return [event for event in events if isinstance(event, MeteringAdjusted)]


async def test_late_frames_of_a_lost_host_are_told_of_in_few_events(
    served: tuple[NatsServer, Bus], tmp_path: Path
) -> None:
    """All of them, once; nothing of other hosts, nor of what is sent from then on."""
    server, bus = served
    lost, other = new_id(), new_id()
    await put(bus, record(lost, host="h1"), record(other, host="h2"))
    start_ms = recent_ms(60)
    await lose(bus, "h1")
    late = [*busy_frames([lost], 60, start_ms=start_ms, host="h1")]
    publisher = Publisher(bus)
    async with collector_process(tmp_path, server.url) as collector:
        for frame in (*late, *busy_frames([other], 5, start_ms=start_ms, host="h2")):
            await publish(publisher, frame)
        now_ms = recent_ms(-5)
        for frame in busy_frames([lost], 5, start_ms=now_ms, host="h1"):
            await publish(publisher, frame)
        await all_collected(bus)
        assert await collector.stop() == 0
    told = await adjustments(bus)
    assert 1 <= len(told) <= 5
    assert {event.host_id for event in told} == {"h1"}
    assert sum(event.frames for event in told) == 60
    assert sum(event.rows for event in told) == 60
    ends = [(event.first_tick.timestamp(), event.last_tick.timestamp()) for event in told]
    assert min(first for first, _ in ends) == start_ms / 1000
    assert max(last for _, last in ends) == late[-1].tick_ms / 1000
    assert await stored(bus, subjects.METRICS_ENRICHED) == 70


@pytest.mark.chaos
async def test_late_frames_are_told_of_although_the_collector_is_killed(
    served: tuple[NatsServer, Bus], tmp_path: Path
) -> None:
    """After they were passed on and before they were told of: each is in an event in the end."""
    server, bus = served
    vm_id = new_id()
    await put(bus, record(vm_id, host="h1"))
    start_ms = recent_ms(300)
    await lose(bus, "h1")
    publisher = Publisher(bus)
    async with collector_process(tmp_path, server.url) as collector:
        for frame in busy_frames([vm_id], 300, start_ms=start_ms, host="h1"):
            await publish(publisher, frame)
        for reached in (1, 150):
            await reach(bus, subjects.METRICS_ENRICHED, reached)
            await collector.kill()
            await collector.start()
        await all_collected(bus)
        assert await collector.stop() == 0
    told = await adjustments(bus)
    assert sum(event.frames for event in told) >= 300
    assert min(event.first_tick.timestamp() for event in told) == start_ms / 1000
    assert await stored(bus, subjects.METRICS_ENRICHED) == 300
