"""The batcher's doors for usage and series, over a store, on a bus."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec

from batcher.archive import Archive
from batcher.corrections import Corrections
from batcher.series_door import SUBJECT as SERIES
from batcher.series_door import SeriesDoor
from batcher.store import Store
from batcher.watermark import Watermark, decode_placed
from batcher.windows import Retention
from batcher.windows_door import SUBJECT as WINDOWS
from batcher.windows_door import WindowsDoor
from runtime.buckets import Bucket
from runtime.bus import Bus
from runtime.clock import SystemClock
from schemas import subjects
from schemas.corrections import decode_vm_corrections
from schemas.hosts import decode_host_loss
from schemas.vms import VmRecord, decode_vm_record
from tests.support.frames import record

KEPT = Retention(
    born=datetime(2020, 1, 1, tzinfo=UTC), ticks=timedelta(days=7), minutes=timedelta(days=90)
)


def watermark_of(bus: Bus, store: Store, corrections: Corrections) -> Watermark:
    """One that knows nothing before it runs."""
    return Watermark(
        store,
        Bucket(bus, subjects.VM_SPECS, decode_placed),
        Bucket(bus, subjects.LOST_HOSTS, decode_host_loss),
        SystemClock(),
        corrections=corrections,
        margin_ms=0,
    )


@asynccontextmanager
async def doors(bus: Bus, store: Store, retention: Retention = KEPT) -> AsyncIterator[Watermark]:
    """Both doors for the length of the block."""
    corrections = Corrections(Bucket(bus, subjects.CORRECTIONS, decode_vm_corrections))
    watermark = watermark_of(bus, store, corrections)
    archive = Archive(store, watermark, retention, SystemClock(), 30, lambda: None)
    subscriptions = []
    for subject, kind in ((WINDOWS, WindowsDoor), (SERIES, SeriesDoor)):
        subscriptions.append(await bus.subscribe(subject, kind(archive).answer))
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(watermark.run(), name="watermark"),
            group.create_task(corrections.run(), name="corrections"),
        ]
        try:
            yield watermark
        finally:
            for task in tasks:
                task.cancel()
            for subscription in subscriptions:
                await subscription.unsubscribe()


async def recorded(bus: Bus, customer: str, vm_id: UUID, **labels: str) -> None:
    """Write the record of a VM with these labels, on a host that has told of all until now."""
    records = Bucket(bus, subjects.VM_SPECS, decode_vm_record)
    made: VmRecord = record(vm_id, customer=customer, host="h-told")
    spec = msgspec.structs.replace(made.spec, labels=labels)
    await records.put(subjects.vm_key(customer, vm_id), msgspec.structs.replace(made, spec=spec))
