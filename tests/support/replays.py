"""Frames of some hosts for replays, and what the pipeline bills for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID

import numpy as np

from runtime.buckets import Bucket
from runtime.bus import Bus, Message
from runtime.publisher import Publisher
from runtime.reading import read_stream
from schemas.audit import AuditEntry, decode_audit_entry
from schemas.codec import decoder, encode
from schemas.events import MeteringAdjusted, decode_host_event
from schemas.frames import Frame, FramesStored, encode_frame
from schemas.ids import new_id
from schemas.subjects import (
    AUDIT,
    HOST_EVENTS,
    METRICS_STORED,
    VM_SPECS,
    metrics_raw,
    usage_query,
    vm_key,
)
from schemas.usage import UsageQuery, decode_usage_reply
from schemas.vms import METERS, VmRecord, decode_vm_record
from tests.support.frames import busy_frames, record

Bills = dict[UUID, dict[str, int]]
"""Counters and samples by VM."""

_decode_stored = decoder(FramesStored)


class Fleet:
    """Hosts `h1` and `h2` with three VMs each, of two customers, and their frames.

    Args:
        ticks: Of each host; they end a minute ago.
    """

    customers = ("acme", "globex")

    def __init__(self, ticks: int) -> None:
        self.ticks = ticks
        self.records: list[VmRecord] = []
        start_ms = time.time_ns() // 10**8 * 100 - 60_000 - ticks * 100
        self.by_host: dict[str, list[Frame]] = {}
        for host in ("h1", "h2"):
            vm_ids = [new_id() for _ in range(3)]
            self.records += [
                record(vm_id, host=host, customer=self.customers[place % 2])
                for place, vm_id in enumerate(vm_ids)
            ]
            self.by_host[host] = list(busy_frames(vm_ids, ticks, start_ms=start_ms, host=host))

    def frames(self, begin: int = 0, end: int | None = None) -> list[Frame]:
        """Of all hosts, tick by tick."""
        parts = [frames[begin:end] for frames in self.by_host.values()]
        return [frame for tick in zip(*parts, strict=True) for frame in tick]

    def bills(self, ticks: int) -> Bills:
        """What the first so many ticks cost: the last counters, to the unit."""
        found: Bills = {}
        for frames in self.by_host.values():
            last = frames[ticks - 1]
            for place in range(last.rows):
                vm_id = UUID(bytes=last.vm_ids[16 * place : 16 * place + 16])
                found[vm_id] = {
                    meter: int(np.frombuffer(getattr(last, meter), "<u8")[place])
                    for meter in METERS
                } | {"samples": ticks}
        return found


async def put_records(bus: Bus, records: Iterable[VmRecord]) -> None:
    """As the gateway does."""
    bucket = Bucket(bus, VM_SPECS, decode_vm_record)
    for one in records:
        await bucket.put(vm_key(one.customer_id, one.vm_id), one)


async def send(bus: Bus, frames: Iterable[Frame]) -> None:
    """As agents do."""
    publisher = Publisher(bus)
    for frame in frames:
        await publisher.publish(metrics_raw(frame.host), encode_frame(frame), msg_id=frame.msg_id)


class Stored:
    """How many frames batchers have stored, and how many of them had a lag to tell."""

    def __init__(self) -> None:
        self.frames = 0
        self.lags = 0
        self._changed = asyncio.Event()

    async def hear(self, message: Message) -> None:
        """Handler of `metrics.stored`."""
        report = _decode_stored(message.data)
        self.frames += report.frames
        self.lags += len(report.lags_ms)
        self._changed.set()

    async def reach(self, frames: int) -> None:
        """Return once there are so many, and fail if there are more."""
        async with asyncio.timeout(60):
            while self.frames < frames:
                self._changed.clear()
                await self._changed.wait()
        assert self.frames == frames


@asynccontextmanager
async def stored_frames(bus: Bus) -> AsyncIterator[Stored]:
    """Counts while the block lasts."""
    stored = Stored()
    subscription = await bus.subscribe(METRICS_STORED, stored.hear)
    await bus.client.flush()
    yield stored
    await subscription.unsubscribe()


async def billed(bus: Bus, customers: Sequence[str] = Fleet.customers) -> Bills:
    """What the pipeline bills for the last hour."""
    now = datetime.now(UTC)
    query = UsageQuery(start=now - timedelta(hours=1), end=now + timedelta(hours=1))
    found: Bills = {}
    for customer in customers:
        answer = await bus.request(usage_query(customer), encode(query), timeout_s=20)
        report = decode_usage_reply(answer.data).report
        assert report is not None
        for row in report.vms:
            found[row.vm_id] = {name: getattr(row, name) for name in (*METERS, "samples")}
    return found


async def adjustments(bus: Bus) -> list[MeteringAdjusted]:
    """All that are told."""
    events = [decode_host_event(message.data) for message in await read_stream(bus, HOST_EVENTS)]
    return [event for event in events if isinstance(event, MeteringAdjusted)]


async def audit_entries(bus: Bus) -> list[AuditEntry]:
    """All there are."""
    return [decode_audit_entry(message.data) for message in await read_stream(bus, AUDIT)]
