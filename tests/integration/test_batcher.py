"""The batcher as a process on a real nats-server, with chDB as its store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest

from batcher.records import FEEDS
from batcher.settings import BatcherSettings
from batcher.store import Store
from runtime.bus import Bus, Message
from runtime.publisher import Publisher
from schemas import subjects
from schemas.audit import AuditEntry
from schemas.codec import encode
from schemas.errors import ErrorCode
from schemas.events import GapOpened, VmCreated
from schemas.frames import (
    HEADER_DETAIL,
    HEADER_ORIGIN_SEQUENCE,
    HEADER_REASON,
    EnrichedFrame,
    FramesStored,
    encode_frame,
)
from schemas.ids import new_id
from schemas.usage import UsageQuery, UsageReply, decode_usage_reply
from schemas.vms import METERS
from tests.support.batcher import all_stored, answered, batcher_process, begun
from tests.support.nats import NatsServer, bus_with_streams
from tests.support.store import Reading, enriched

BASE_MS = time.time_ns() // 10**8 * 100 - 600_000


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[NatsServer, Bus]]:
    async with bus_with_streams(tmp_path / "nats") as pair:
        yield pair


def frames_of(vms: Sequence[UUID], count: int, customer: str = "acme") -> list[EnrichedFrame]:
    """Consecutive ticks of one host; every counter grows by 10 a tick."""
    run_id = new_id()
    return [
        enriched(
            [
                Reading(
                    vm_id,
                    BASE_MS + seq * 100,
                    counters=dict.fromkeys(METERS, seq * 10),
                    customer=customer,
                )
                for vm_id in vms
            ],
            run_id=run_id,
            seq=seq,
            sampled_at_ns=time.time_ns(),
        )
        for seq in range(count)
    ]


async def publish(publisher: Publisher, frame: EnrichedFrame) -> None:
    await publisher.publish(
        subjects.metrics_enriched(frame.host), encode_frame(frame), msg_id=frame.msg_id
    )


async def ask(bus: Bus, payload: bytes, customer: str = "acme") -> UsageReply:
    answer = await bus.request(subjects.usage_query(customer), payload, timeout_s=10)
    return decode_usage_reply(answer.data)


def window(start_ms: int = BASE_MS, end_ms: int = BASE_MS + 600_000) -> bytes:
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return encode(
        UsageQuery(
            start=epoch + timedelta(milliseconds=start_ms),
            end=epoch + timedelta(milliseconds=end_ms),
        )
    )


@pytest.mark.chaos
async def test_every_tick_is_stored_once_although_the_batcher_is_killed(
    served: tuple[NatsServer, Bus], tmp_path: Path
) -> None:
    """Three times SIGKILL amid the load: after the last start nothing is missing or double."""
    server, bus = served
    vms, count = [new_id() for _ in range(3)], 600
    stored = asyncio.Event()

    async def on_stored(_message: Message) -> None:
        stored.set()

    await bus.subscribe(subjects.METRICS_STORED, on_stored)
    publisher = Publisher(bus)
    async with batcher_process(tmp_path, server.url, flush_rows="50") as batcher:

        async def load() -> None:
            for frame in frames_of(vms, count):
                await publish(publisher, frame)
                await asyncio.sleep(0.01)

        async with asyncio.timeout(90), asyncio.TaskGroup() as group:
            group.create_task(load(), name="load")
            for _ in range(3):
                stored.clear()
                await stored.wait()
                await batcher.kill()
                await batcher.start()
        await all_stored(bus)
        report = (await ask(bus, window())).report
        assert report is not None
        assert {row.vm_id for row in report.vms} == set(vms)
        for row in report.vms:
            assert row.samples == count
            assert all(getattr(row, meter) == (count - 1) * 10 for meter in METERS)
        assert await batcher.stop() == 0

    store = Store(BatcherSettings(store_path=str(batcher.store_path)))
    try:
        rows = await store.query(
            "SELECT count(), uniqExact(vm_id, tick_ms), min(seq), max(seq) FROM samples FINAL"
        )
    finally:
        await store.close()
    assert rows[0] == (count * len(vms), count * len(vms), 0, count - 1)


async def test_frames_are_announced_and_told_to_end_it_flushes_first(
    served: tuple[NatsServer, Bus], tmp_path: Path
) -> None:
    """Each flush says which ticks can be queried; SIGTERM leaves no fetched frame unanswered."""
    server, bus = served
    announced: asyncio.Queue[FramesStored] = asyncio.Queue()

    async def on_stored(message: Message) -> None:
        announced.put_nowait(msgspec.json.decode(message.data, type=FramesStored))

    await bus.subscribe(subjects.METRICS_STORED, on_stored)
    publisher = Publisher(bus)
    async with batcher_process(tmp_path, server.url) as batcher:
        frames = frames_of([new_id()], 20)
        for frame in frames:
            await publish(publisher, frame)
        heard: list[FramesStored] = []
        async with asyncio.timeout(30):
            while sum(message.frames for message in heard) < len(frames):
                heard.append(await announced.get())
        assert max(message.ticks_ms["h1"] for message in heard) == frames[-1].tick_ms
        assert sum(len(message.lags_ms) for message in heard) == len(frames)
        last = frames_of([new_id()], 1)[0]
        await publish(publisher, last)
        assert await batcher.stop() == 0
        # Stored, or given back: then the next one has it at once, not after the ack wait.
        info = await bus.js.consumer_info(subjects.METRICS_ENRICHED, "batcher")
        left = (info.num_ack_pending or 0) + (info.num_pending or 0)
        assert left <= 1
        if left:
            pull = await bus.js.pull_subscribe_bind("batcher", subjects.METRICS_ENRICHED)
            assert len(await pull.fetch(left, timeout=2)) == left
        assert "service.stopped" in batcher.log()


async def test_bad_frames_are_set_aside_and_the_rest_goes_on(
    served: tuple[NatsServer, Bus], tmp_path: Path
) -> None:
    """Garbage and a counter beyond 2^63-1 land in METRICS_REJECTED with reason and origin."""
    server, bus = served
    publisher = Publisher(bus)
    vm_id = new_id()
    frames = frames_of([vm_id], 9)
    bad = enriched([Reading(new_id(), BASE_MS, counters={"cpu_ns": 2**63})], host="h2")
    await publisher.publish("metrics.enriched.h1", b"\x93garbage", msg_id="garbage")
    for frame in (*frames[:4], bad, *frames[4:]):
        await publish(publisher, frame)
    async with batcher_process(tmp_path, server.url) as batcher:
        await all_stored(bus)
        report = (await ask(bus, window())).report
        assert report is not None
        assert [(row.vm_id, row.samples) for row in report.vms] == [(vm_id, len(frames))]
        garbage = await bus.js.get_last_msg("METRICS_REJECTED", "metrics.rejected.store_refused.h1")
        refused = await bus.js.get_last_msg("METRICS_REJECTED", "metrics.rejected.store_refused.h2")
        assert (await bus.js.stream_info("METRICS_REJECTED")).state.messages == 2
        assert garbage.data == b"\x93garbage"
        assert refused.data == encode_frame(bad)
        assert garbage.headers
        assert refused.headers
        assert garbage.headers[HEADER_REASON] == refused.headers[HEADER_REASON] == "store_refused"
        assert garbage.headers[HEADER_ORIGIN_SEQUENCE] == "1"
        assert refused.headers[HEADER_ORIGIN_SEQUENCE] == "6"
        assert refused.headers[HEADER_DETAIL].startswith("counter_overflow: cpu_ns")
        assert await batcher.stop() == 0


async def test_a_question_that_cannot_be_answered_gets_an_error(
    served: tuple[NatsServer, Bus], tmp_path: Path
) -> None:
    """Malformed and impossible queries are told so; a customer without VMs gets an empty report."""
    server, bus = served
    async with batcher_process(tmp_path, server.url):
        await all_stored(bus)
        for payload in (b"{", b"{}", window(BASE_MS, BASE_MS), b'{"start":"2026","end":1}'):
            reply = await ask(bus, payload)
            assert reply.report is None
            assert reply.error is not None
            assert reply.error.code is ErrorCode.BAD_REQUEST
            assert reply.error.message
        nothing = (await ask(bus, window(), customer="nobody")).report
        assert nothing is not None
        assert nothing.customer_id == "nobody"
        assert nothing.vms == ()
        assert set(nothing.totals) == set(METERS)


@pytest.mark.chaos
async def test_each_event_is_one_row_although_the_batcher_is_killed(
    served: tuple[NatsServer, Bus], tmp_path: Path
) -> None:
    """Three times SIGKILL while events come, some of them twice: none is missing or double."""
    server, bus = served
    publisher = Publisher(bus)
    ids = [new_id() for _ in range(300)]

    async def publish_event(number: int) -> None:
        event = VmCreated(
            event_id=ids[number], at=datetime.now(UTC), customer_id="acme", vm_id=new_id(),
            host_id="h1",
        )  # fmt: skip
        for _ in range(1 + number % 2):
            await publisher.publish(subjects.vm_event(event), encode(event), msg_id=str(new_id()))

    async with batcher_process(tmp_path, server.url) as batcher:
        async with asyncio.timeout(100):
            for number in range(len(ids)):
                await publish_event(number)
                if number % 80 == 79:
                    # Some are stored, some are on their way.
                    await begun(bus, FEEDS[0].stream, FEEDS[0].durable, after=number // 2)
                    await batcher.kill()
                    await batcher.start()
            await answered(bus, FEEDS[0].stream, FEEDS[0].durable)
        assert await batcher.stop() == 0
    store = Store(BatcherSettings(store_path=str(batcher.store_path)))
    try:
        rows = await store.query("SELECT event_id FROM vm_events FINAL")
    finally:
        await store.close()
    assert sorted(row[0] for row in rows) == sorted(ids)


async def test_events_and_audit_entries_land_in_tables_of_their_own(
    served: tuple[NatsServer, Bus], tmp_path: Path
) -> None:
    """The service feeds all three, and has answered for what it stored when it ends."""
    server, bus = served
    about: dict[str, Any] = {"event_id": new_id(), "at": datetime.now(UTC)}
    event = VmCreated(**about, customer_id="acme", vm_id=new_id(), host_id="h1")
    gap = GapOpened(**about, host_id="h1", run_id=new_id(), seq_first=0, seq_last=0)
    entry = AuditEntry(
        **about, actor="ops", customer_id="acme", action="replay", target="x", outcome="failed"
    )
    publisher = Publisher(bus)
    for subject, message in (
        (subjects.vm_event(event), event),
        (subjects.host_event(gap), gap),
        (subjects.audit(entry), entry),
    ):
        await publisher.publish(subject, encode(message), msg_id=str(new_id()))
    async with batcher_process(tmp_path, server.url) as batcher:
        async with asyncio.timeout(60):
            for feed in FEEDS:
                await answered(bus, feed.stream, feed.durable)
        assert await batcher.stop() == 0
    store = Store(BatcherSettings(store_path=str(batcher.store_path)))
    try:
        for feed in FEEDS:
            rows = await store.query(f"SELECT event_id FROM {feed.table}")  # noqa: S608
            assert [row[0] for row in rows] == [about["event_id"]], feed.table
    finally:
        await store.close()
