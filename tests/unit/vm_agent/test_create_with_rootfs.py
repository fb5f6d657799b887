"""A create that makes a disk from a rootfs: half done by a killed agent, or under a change."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from runtime.clock import utc_now
from schemas.commands import CreateVm, DeleteVm
from schemas.errors import ErrorCode
from schemas.hosts import Operation
from schemas.ids import new_id
from schemas.units import MIB
from schemas.vms import VmSpec, VmState
from tests.support.memory_agent import CAPACITY, Mail, Run
from tests.support.memory_host import MemoryDesk, MemoryImages
from tests.support.memory_kernel import MemoryKernel
from vm_agent.store import Current, Record, RecordStore

ROOTFS_BYTES = 2 * MIB + 512


class Stage:
    """An agent in memory whose image has a rootfs, with disks and records on a real one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rootfs = folder / "rootfs"
        self.rootfs.write_bytes(os.urandom(ROOTFS_BYTES))
        self.desk = MemoryDesk()
        self.run = Run(folder, MemoryKernel(), self.desk, MemoryImages(self.rootfs))
        self.create = CreateVm(
            command_id=new_id(),
            customer_id="acme",
            vm_id=new_id(),
            host_id="h1",
            issued_at=utc_now(),
            deadline=utc_now() + timedelta(hours=1),
            spec=VmSpec(image="tiny"),
        )
        self.disk = folder / "disks" / f"{self.create.vm_id}.img"

    def half_done(self, disk_mib: int) -> None:
        """What an agent leaves that is killed when the VM is admitted and its disk half copied."""
        RecordStore(self.folder / "vms").put(
            Record(
                vm_id=self.create.vm_id,
                customer_id="acme",
                spec=VmSpec(image="tiny", disk_mib=disk_mib),
                state=VmState.CREATING,
                created_at=utc_now(),
                driver="memory",
                current=Current(command_id=self.create.command_id, verb="create", incarnation=0),
            )
        )
        self.disk.parent.mkdir()
        (self.disk.parent / f".new-{self.disk.name}").write_bytes(b"half")

    async def deliver(self, command: CreateVm | DeleteVm) -> Operation:
        """A command and its result."""
        self.run.inbox.queue.put_nowait(Mail(command))
        async with asyncio.timeout(20):
            while not (results := self.desk.operations.get(command.command_id)):
                assert not self.run.tasks.failures
                await asyncio.sleep(0.005)
        return results[-1]


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    made = Stage(tmp_path)
    yield made
    await made.run.die()


@pytest.mark.parametrize("labels", [{}, {"team": "web"}])
async def test_a_create_that_was_half_done_is_finished(
    stage: Stage, labels: dict[str, str]
) -> None:
    """By its redelivery: the disk is whole, nothing else is left, the space is counted.

    Its owner may have changed the labels meanwhile, and the next gateway sends the new ones.
    """
    stage.half_done(disk_mib=3)
    await stage.run.start()
    done = await stage.deliver(replace(stage.create, spec=VmSpec(image="tiny", labels=labels)))
    assert (done.state, done.error) == (VmState.CREATED, None)
    assert stage.disk.read_bytes() == stage.rootfs.read_bytes()
    assert list(stage.disk.parent.iterdir()) == [stage.disk]
    assert stage.run.admission.free.disk_mib == CAPACITY.disk_mib - 3


async def test_a_disk_of_another_size_than_was_reserved_is_not_made(stage: Stage) -> None:
    """The image was replaced in between: the VM fails and can be deleted."""
    stage.half_done(disk_mib=1)
    await stage.run.start()
    done = await stage.deliver(stage.create)
    assert done.state is VmState.FAILED
    assert done.error is not None
    assert done.error.code is ErrorCode.CONFLICT
    delete = DeleteVm(
        command_id=new_id(),
        customer_id="acme",
        vm_id=stage.create.vm_id,
        host_id="h1",
        issued_at=utc_now(),
        deadline=utc_now() + timedelta(hours=1),
    )
    assert (await stage.deliver(delete)).state is VmState.DELETED
    assert list(stage.disk.parent.iterdir()) == []
    assert stage.run.admission.free == CAPACITY


async def test_a_rootfs_that_cannot_be_read_fails_the_vm(stage: Stage) -> None:
    """And leaves no disk."""
    await stage.run.start()
    stage.rootfs.rename(stage.folder / "moved")
    stage.rootfs.symlink_to(stage.folder / "moved")
    done = await stage.deliver(stage.create)
    assert done.state is VmState.FAILED
    assert done.error is not None
    assert done.error.code is ErrorCode.INTERNAL
    assert list(stage.disk.parent.iterdir()) == []
