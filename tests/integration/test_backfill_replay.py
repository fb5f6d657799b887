"""The past corrected, and then sent once more: raw frames and enriched ones."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID

import numpy as np

from decisec.backfill import Corrections
from decisec.streams.replay import Replay, plan
from decisec.streams.selection import Selection
from decisec.streams.targets import BackOntoTheBus
from runtime.buckets import Bucket
from runtime.bus import Bus
from runtime.publisher import Publisher
from runtime.reading import count_messages, read_stream
from schemas import subjects
from schemas.codec import encode
from schemas.corrections import BackfillWish
from schemas.frames import SampleFlag, decode_enriched_frame, encode_frame
from schemas.ids import new_id
from schemas.usage import UsageQuery, decode_usage_reply
from schemas.vms import decode_vm_record
from tests.support.backfill import EPOCH
from tests.support.batcher import all_stored, batcher_process
from tests.support.collector import collector_process
from tests.support.frames import HOST, Row, frame, record
from tests.support.nats import bus_with_streams

BASE_MS = time.time_ns() // 10**9 * 1000 - 600_000
COUNT = 50
VM, OTHER = new_id(), new_id()


def at_ms(ms: int) -> datetime:
    return EPOCH + timedelta(milliseconds=ms)


async def replay(bus: Bus, source: str, target: str) -> None:
    """All of a stream once more, as `decisec replay` does it."""
    wanted = await plan(
        bus, source=source, target=target, begin=1, end=None, selection=Selection(), reason="again"
    )
    done = await Replay(bus, wanted, BackOntoTheBus(bus, wanted.replay_id)).run()
    assert done.messages >= COUNT


async def cpu(bus: Bus, customer: str) -> dict[UUID, int]:
    query = encode(UsageQuery(start=at_ms(BASE_MS), end=at_ms(BASE_MS + 60_000)))
    answer = await bus.request(subjects.usage_query(customer), query, timeout_s=10)
    report = decode_usage_reply(answer.data).report
    assert report is not None
    return {row.vm_id: row.cpu_ns for row in report.vms}


async def collected(bus: Bus, frames: int) -> list[dict[UUID, str]]:
    """Owners as the collector says, frame by frame, once it has passed on so many."""
    async with asyncio.timeout(60):
        while await count_messages(bus, subjects.METRICS_ENRICHED, "metrics.enriched.>") < frames:
            await asyncio.sleep(0.05)
    found = []
    for message in await read_stream(bus, subjects.METRICS_ENRICHED):
        if message.subject.startswith(subjects.METRICS_PROGRESS):
            continue
        enriched = decode_enriched_frame(message.data)
        ids = [UUID(bytes=enriched.vm_ids[i : i + 16]) for i in range(0, len(enriched.vm_ids), 16)]
        index = np.frombuffer(enriched.customer_index, "<u2")
        found.append({vm: enriched.customers[i] for vm, i in zip(ids, index, strict=True)})
    return found


async def test_what_is_replayed_after_a_correction_goes_to_the_new_owner(tmp_path: Path) -> None:
    """Raw frames by collector and batcher, enriched ones by the batcher alone; others stay."""
    run_id = new_id()
    async with (
        bus_with_streams(tmp_path / "nats") as (server, bus),
        collector_process(tmp_path, server.url),
        batcher_process(tmp_path, server.url),
    ):
        records = Bucket(bus, subjects.VM_SPECS, decode_vm_record)
        for one in (record(VM), record(OTHER)):
            await records.put(subjects.vm_key(one.customer_id, one.vm_id), one)
        publisher = Publisher(bus)
        for seq in range(COUNT):
            flags = int(SampleFlag.FINAL) if seq == COUNT - 1 else 0
            counters = {"uptime_ms": 100 * seq, "cpu_ns": 1000 * seq}
            rows = [Row(vm, counters, flags=flags) for vm in (VM, OTHER)]
            sent = frame(rows, run_id=run_id, seq=seq, tick_ms=BASE_MS + 100 * seq)
            await publisher.publish(
                subjects.metrics_raw(HOST), encode_frame(sent), msg_id=sent.msg_id
            )
        await collected(bus, COUNT)
        await all_stored(bus)
        assert await cpu(bus, "acme") == dict.fromkeys((VM, OTHER), 49_000)

        corrections = Corrections(bus)
        wish = BackfillWish(
            vm_id=VM, customer_id="bolt", since=at_ms(BASE_MS), until=at_ms(BASE_MS + 30_000)
        )
        asked = await corrections.order(wish, "tester", "because")
        assert asked.correction is not None
        async with asyncio.timeout(60):
            await corrections.applied(VM, asked.correction.correction_id)
        await replay(bus, subjects.METRICS_ENRICHED, "batcher")
        await replay(bus, subjects.METRICS_RAW, "collector")
        owners = await collected(bus, 3 * COUNT)
        await all_stored(bus)
        assert await cpu(bus, "acme") == {OTHER: 49_000}
        assert await cpu(bus, "bolt") == {VM: 49_000}
        # The first ones as they were, twice; then the collector itself knows.
        assert owners[: 2 * COUNT] == [{VM: "acme", OTHER: "acme"}] * 2 * COUNT
        assert owners[2 * COUNT :] == [{VM: "bolt", OTHER: "acme"}] * COUNT
