"""Snapshots through the agent: taken amid work, restored under another id, billed from zero."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest
from msgspec.structs import replace

from schemas.commands import (
    BootVm,
    CreateVm,
    DeleteVm,
    DiscardSnapshot,
    PauseVm,
    RestoreVm,
    ShutdownVm,
    SnapshotVm,
)
from schemas.errors import ErrorCode
from schemas.events import VmSnapshotted, VmStarted
from schemas.frames import Frame
from schemas.hosts import OperationStatus
from schemas.ids import new_id
from schemas.vms import SnapshotKind, VmSpec, VmState
from tests.support.agents import AgentProcess, Client, booted, running_agent
from tests.support.hypervisors import Lab
from tests.support.samples import samples_of

pytestmark = [pytest.mark.hypervisor, pytest.mark.timeout(90)]

ROUNDS, KIB = 20_000, 64
SPEC = VmSpec(
    image="tiny",
    memory_mib=32,
    disk_mib=8,
    track_memory=True,
    kernel_args={"blkw": str(KIB), "loop": str(ROUNDS)},
)
TOTAL = ROUNDS * KIB * 1024


@pytest.fixture
async def host(tmp_path: Path, lab: Lab) -> AsyncIterator[tuple[AgentProcess, Client]]:
    """An agent with Firecracker."""
    async with running_agent(tmp_path, lab, "firecracker", disk_mib="2000") as made:
        yield made


def written(frames: list[Frame], vm_id: UUID) -> int:
    """Bytes a VM has written by its newest sample."""
    samples = samples_of(frames, vm_id)
    return samples[-1].counters.disk_write_bytes if samples else 0


async def done(client: Client, vm_id: UUID) -> int:
    """Bytes a VM has written once its guest has no more to write."""
    before = -1
    while True:
        now = written(await client.frames(), vm_id)
        if now and now == before:
            return now
        before = now
        await asyncio.sleep(1)


async def told(client: Client, vm_id: UUID) -> list[UUID]:
    """The snapshots that the VM's status tells of."""
    status = await client.status(vm_id)
    assert status is not None
    shape = {(s.image, s.memory_mib, s.disk_mib, s.vcpus) for s in status.snapshots}
    assert shape <= {(SPEC.image, SPEC.memory_mib, SPEC.disk_mib, SPEC.vcpus)}
    return [snapshot.snapshot_id for snapshot in status.snapshots]


async def test_a_vm_goes_on_under_another_id(host: tuple[AgentProcess, Client]) -> None:
    """With its memory and its disk; nobody pays for what the other one has used."""
    process, client = host
    vm_id = await booted(client, SPEC)
    await client.frames_until(lambda frames: written(frames, vm_id) > 0)
    first, second = new_id(), new_id()
    taken = await client.do(SnapshotVm, vm_id, snapshot_id=first)
    assert (taken.status, taken.state) == (OperationStatus.SUCCEEDED, VmState.RUNNING)
    await client.do(PauseVm, vm_id)
    paused = await client.do(SnapshotVm, vm_id, snapshot_id=second, kind=SnapshotKind.DIFF)
    assert (paused.status, paused.state) == (OperationStatus.SUCCEEDED, VmState.PAUSED)
    assert paused.snapshot_id == second
    assert await told(client, vm_id) == [first, second]
    kinds = [e.kind for e in await client.events() if isinstance(e, VmSnapshotted)]
    assert kinds == [SnapshotKind.FULL, SnapshotKind.DIFF]
    assert (await client.do(ShutdownVm, vm_id, grace_s=0)).state is VmState.STOPPED
    # A killed agent knows its snapshots again, and what they take.
    run_id = (await client.host()).run_id
    await process.kill()
    await process.start()
    left_mib = (await client.host(other_than=run_id)).free.disk_mib
    assert await told(client, vm_id) == [first, second]
    assert left_mib == 2000 - SPEC.disk_mib - 2 * (SPEC.memory_mib + SPEC.disk_mib)
    copies = []
    for snapshot_id in (first, second):
        copy = new_id()
        await client.do(CreateVm, copy, spec=SPEC)
        restored = await client.do(RestoreVm, copy, snapshot_id=snapshot_id)
        assert (restored.error, restored.state) == (None, VmState.RUNNING)
        copies.append(copy)
    writes = [await done(client, copy) for copy in copies]
    events = [e for e in await client.events() if isinstance(e, VmStarted) and e.snapshot_id]
    assert [(e.vm_id, e.snapshot_id) for e in events] == list(
        zip(copies, (first, second), strict=True)
    )
    # The later the snapshot, the less is left to do; and all of it is done.
    assert TOTAL > writes[0] > writes[1] > 0
    for copy in copies:
        assert (await client.do(DeleteVm, copy)).state is VmState.DELETED


async def test_what_cannot_be_is_refused(host: tuple[AgentProcess, Client]) -> None:
    """Other people's snapshots, VMs of another shape, too many of them; and nothing leaks."""
    process, client = host
    vm_id = await booted(client, replace(SPEC, track_memory=False))
    snapshot_id = new_id()

    async def code(kind: type, vm: UUID, /, **fields: object) -> ErrorCode | None:
        operation = await client.do(kind, vm, **fields)
        return operation.error.code if operation.error else None

    assert await code(SnapshotVm, vm_id, snapshot_id=snapshot_id, kind=SnapshotKind.DIFF) is (
        ErrorCode.UNSUPPORTED
    )
    assert await code(SnapshotVm, vm_id, snapshot_id=snapshot_id) is None
    assert await code(RestoreVm, vm_id, snapshot_id=snapshot_id) is ErrorCode.ILLEGAL_TRANSITION
    other, bigger = new_id(), new_id()
    await client.do(CreateVm, other, spec=SPEC, customer_id="globex")
    await client.do(CreateVm, bigger, spec=replace(SPEC, memory_mib=64, track_memory=False))
    assert await code(RestoreVm, other, snapshot_id=snapshot_id, customer_id="globex") is (
        ErrorCode.NOT_FOUND
    )
    assert await code(RestoreVm, bigger, snapshot_id=new_id()) is ErrorCode.NOT_FOUND
    assert await code(RestoreVm, bigger, snapshot_id=snapshot_id) is ErrorCode.CONFLICT
    for _ in range(7):
        assert await code(SnapshotVm, vm_id, snapshot_id=new_id()) is None
    assert await code(SnapshotVm, vm_id, snapshot_id=new_id()) is ErrorCode.NO_CAPACITY
    before = await told(client, vm_id)
    assert (len(before), before[0]) == (8, snapshot_id)
    assert await code(DiscardSnapshot, vm_id, snapshot_id=snapshot_id) is None
    assert await told(client, vm_id) == before[1:]
    assert await code(SnapshotVm, vm_id, snapshot_id=new_id()) is None
    assert await code(BootVm, bigger) is None
    assert await code(DeleteVm, vm_id) is None
    assert await told(client, vm_id) == []
    assert os.listdir(process.data_dir / "snapshots") == []  # noqa: PTH208 - one level is meant
