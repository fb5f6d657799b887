"""A batcher reads the bucket of corrections; what it hands out stays as it was."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest

from batcher.amendment import View
from batcher.corrections import Corrections
from runtime.buckets import Bucket
from schemas import subjects
from schemas.corrections import VmCorrections, decode_vm_corrections
from schemas.frames import EnrichedFrame
from schemas.ids import new_id
from tests.support.corrections import corrected, owned
from tests.support.nats import bus_with_streams
from tests.support.store import Reading, enriched

VMS = [new_id() for _ in range(200)]


@pytest.fixture
async def bucket(tmp_path: Path) -> AsyncIterator[Bucket[VmCorrections]]:
    async with bus_with_streams(tmp_path) as (_, bus):
        yield Bucket(bus, subjects.CORRECTIONS, decode_vm_corrections)


def frame_of(vm_ids: list[UUID]) -> EnrichedFrame:
    return enriched([Reading(vm_id, 1_000_000) for vm_id in vm_ids])


def owners(view: View, frame: EnrichedFrame) -> set[str]:
    """Whose rows a frame has by a view."""
    (amended,), _ = view.amend([frame])
    return {amended.customers[at] for at in set(memoryview(amended.customer_index).cast("H"))}


async def owned_by(bucket: Bucket[VmCorrections], customer: str, vm_ids: list[UUID]) -> None:
    async with asyncio.TaskGroup() as group:
        for vm_id in vm_ids:
            value = corrected(vm_id, owned(customer))
            group.create_task(bucket.put(str(vm_id), value), name=f"put-{vm_id}")


async def test_a_bucket_is_read_without_copies_and_views_stay_as_they_were(
    bucket: Bucket[VmCorrections],
) -> None:
    """Each that was held is copied once, by the next change, however many come after that."""
    await owned_by(bucket, "bolt", VMS)
    corrections, frame = Corrections(bucket), frame_of(VMS)
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        following = group.create_task(corrections.run(), name="corrections")
        await corrections.synced()
        assert len(corrections.everything()) == len(VMS)
        assert corrections._index.copied == 0
        before = corrections.view()
        assert corrections.view() is before
        assert owners(before, frame) == {"bolt"}
        await owned_by(bucket, "corp", VMS)
        await corrections.current()
        assert corrections._index.copied == len(VMS)
        assert owners(before, frame) == owners(before, frame_of(VMS[:100])) == {"bolt"}
        assert owners(corrections.view(), frame) == {"corp"}
        assert await corrections.passed(before, [frame])
        assert not await corrections.passed(corrections.view(), [frame])
        quiet = group.create_task(corrections.quiet(), name="quiet")
        await asyncio.wait({quiet}, timeout=0.1)
        assert not quiet.done(), "a batch holds a former view"
        del before
        await quiet
        following.cancel()


async def test_a_view_in_another_thread_does_not_change_while_corrections_come(
    bucket: Bucket[VmCorrections],
) -> None:
    """Built from a state that nobody writes to: frames of any VMs have the owners of then."""
    half = VMS[:100]
    await owned_by(bucket, "bolt", half)
    corrections, stop = Corrections(bucket), threading.Event()

    def build(view: View) -> set[frozenset[str]]:
        found: set[frozenset[str]] = set()
        while True:
            last = stop.is_set()
            # Another set of VMs each time, so that the view looks each of them up anew.
            for at in range(0, 200, 50):
                found.add(frozenset(owners(view, frame_of(VMS[at : at + 50]))))
            if last:
                return found

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        following = group.create_task(corrections.run(), name="corrections")
        await corrections.synced()
        building = asyncio.create_task(
            asyncio.to_thread(build, corrections.view()), name="building"
        )
        await owned_by(bucket, "corp", VMS)
        for vm_id in half:
            await bucket.delete(str(vm_id))
        await corrections.current()
        stop.set()
        assert await building == {frozenset({"bolt"}), frozenset({"acme"})}
        assert set(corrections.everything()) == set(VMS[100:])
        following.cancel()
