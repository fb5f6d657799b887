"""A stream that is parted anew, and back, before its collectors hear of it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

import pytest

from runtime.buckets import Bucket
from runtime.bus import Message
from runtime.publisher import Publisher
from runtime.streams import apply, declared
from schemas import subjects
from schemas.events import decode_host_event, event_type
from schemas.frames import Frame, decode_enriched_frame, encode_frame
from schemas.ids import new_id
from schemas.subjects import partition_of
from schemas.vms import decode_vm_record
from tests.support.collector import collector_process
from tests.support.frames import busy_frames, record
from tests.support.nats import bus_with_streams

AWAY_AND_BACK = next(
    host
    for host in (f"host-{number}" for number in range(64))
    if partition_of(host, 8) == partition_of(host, 5) != partition_of(host, 12)
)
"""Its frames go to one partition, to another, and to the first one again."""


class Ears:
    """What collectors say of one host.

    Attributes:
        told: Events, by type.
    """

    def __init__(self) -> None:
        self.told: Counter[str] = Counter()
        self._newest = -1
        self._news = asyncio.Event()

    async def hear(self, message: Message) -> None:
        """An event or a frame."""
        if message.subject.startswith("host.evt."):
            self.told[event_type(decode_host_event(message.data))] += 1
        else:
            self._newest = max(self._newest, decode_enriched_frame(message.data).seq)
        self._news.set()

    async def until(self, seq: int) -> None:
        """Wait for a frame."""
        async with asyncio.timeout(20):
            while self._newest < seq:
                self._news.clear()
                await self._news.wait()


@pytest.mark.parametrize("lost", [False, True], ids=["all-there", "one-lost"])
async def test_frames_that_went_another_way_meanwhile_are_no_gap(
    tmp_path: Path, lost: bool
) -> None:
    """And one that is lost where nothing was parted anew is."""
    async with bus_with_streams(tmp_path / "nats") as (server, bus):
        vm_id, ears, publisher = new_id(), Ears(), Publisher(bus)
        bucket = Bucket(bus, subjects.VM_SPECS, decode_vm_record)
        one = record(vm_id, host=AWAY_AND_BACK)
        await bucket.put(subjects.vm_key(one.customer_id, vm_id), one)
        start_ms = time.time_ns() // 10**8 * 100 - 5_000
        frames = list(busy_frames([vm_id], 12, start_ms=start_ms, host=AWAY_AND_BACK))
        await bus.subscribe(f"metrics.enriched.{AWAY_AND_BACK}", ears.hear)
        await bus.subscribe(f"host.evt.{AWAY_AND_BACK}.gap_opened", ears.hear)

        async def send(frame: Frame) -> None:
            await publisher.publish(
                subjects.metrics_raw(AWAY_AND_BACK), encode_frame(frame), msg_id=frame.msg_id
            )

        async with collector_process(tmp_path, server.url, suspect_after_s="60"):
            for frame in frames[:3]:
                await send(frame)
            await ears.until(2)
            if not lost:
                await apply(bus, declared(partitions=12))
                await send(frames[3])
                await apply(bus, declared(partitions=5))
            await send(frames[4])
            await ears.until(4)
        assert ears.told == ({"gap_opened": 1} if lost else {})
