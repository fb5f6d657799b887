"""Images with a root file system on a real agent: each VM has a disk of its own made from it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from schemas.commands import BootVm, CreateVm, DeleteVm, ShutdownVm
from schemas.errors import ErrorCode
from schemas.hosts import OperationStatus
from schemas.ids import new_id
from schemas.units import MIB
from schemas.vms import VmSpec, VmState
from tests.support.agents import AgentProcess, Client, agent
from tests.support.hypervisors import REAL_DRIVERS, Lab
from tests.support.nats import bus_with_streams
from tests.support.samples import has_final, samples_of
from vm_agent.images import ImageStore

pytestmark = pytest.mark.timeout(90)

ROOTFS_BYTES = 2 * MIB + 512


@dataclass
class Stage:
    """An agent that runs, somebody who sends commands, and the operator of its image store."""

    agent: AgentProcess
    client: Client
    folder: Path

    @property
    def store(self) -> ImageStore:
        """The store, as another process has it."""
        return ImageStore(self.agent.data_dir / "images")

    def add(self, name: str = "web") -> bytes:
        """Import an image with some root file system; its content."""
        content = os.urandom(ROOTFS_BYTES)
        (self.folder / "rootfs").write_bytes(content)
        kernel = self.folder / "kernel"
        self.store.add(name, kernel, rootfs_path=self.folder / "rootfs", allowed_args=["blkw"])
        return content

    def disk(self, vm_id: object) -> Path:
        return self.agent.data_dir / "disks" / f"{vm_id}.img"

    async def free_disk_is(self, mib: int) -> None:
        """Return once the heartbeat says that so much of the disk space is left."""
        async with asyncio.timeout(10):
            while (await self.client.host()).free.disk_mib != mib:
                await asyncio.sleep(0.05)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"\x7fELF: the simulator boots anything")
    async with (
        bus_with_streams(tmp_path / "nats") as (server, bus),
        agent(
            tmp_path / "agent", server.url, kernel, driver="simulator", disk_mib="100"
        ) as process,
    ):
        yield Stage(process, Client(bus), tmp_path)


@pytest.mark.parametrize(
    ("disk_mib", "size_bytes", "held_mib"), [(0, ROOTFS_BYTES, 3), (5, 5 * MIB, 5)]
)
async def test_a_vms_disk_holds_the_rootfs(
    stage: Stage, disk_mib: int, size_bytes: int, held_mib: int
) -> None:
    """Just it or grown, counted as what it is, also by the next run; a deletion removes it."""
    client = stage.client
    content = stage.add()
    vm_id = new_id()
    created = await client.do(CreateVm, vm_id, spec=VmSpec(image="web", disk_mib=disk_mib))
    assert created.status is OperationStatus.SUCCEEDED, created
    assert stage.disk(vm_id).read_bytes() == content + bytes(size_bytes - ROOTFS_BYTES)
    await stage.free_disk_is(100 - held_mib)
    assert (await client.do(BootVm, vm_id)).status is OperationStatus.SUCCEEDED
    run_id = (await client.host()).run_id
    await stage.agent.kill()
    await stage.agent.start()
    await client.host(other_than=run_id)
    await stage.free_disk_is(100 - held_mib)
    assert (await client.do(DeleteVm, vm_id)).state is VmState.DELETED
    assert list(stage.disk(vm_id).parent.iterdir()) == []
    await stage.free_disk_is(100)


async def test_a_disk_that_is_too_small_is_refused(stage: Stage) -> None:
    """With the least size; one that the host has no room for, too. Nothing is made."""
    stage.add()
    small = await stage.client.do(CreateVm, new_id(), spec=VmSpec(image="web", disk_mib=2))
    assert small.error is not None
    assert small.error.code is ErrorCode.BAD_REQUEST
    assert "at least 3" in small.error.message
    os.truncate(stage.folder / "rootfs", 101 * MIB)
    stage.store.add("huge", stage.folder / "kernel", rootfs_path=stage.folder / "rootfs")
    huge = await stage.client.do(CreateVm, new_id(), spec=VmSpec(image="huge"))
    assert huge.error is not None
    assert huge.error.code is ErrorCode.NO_CAPACITY
    assert not list(stage.agent.data_dir.glob("disks/*"))


async def test_the_store_changes_under_a_running_agent(stage: Stage) -> None:
    """A new image is there at once, a replaced one is for new VMs, a damaged one for none."""
    client = stage.client
    await client.host()
    spec = VmSpec(image="web")
    content = stage.add()
    async with asyncio.timeout(10):
        while "web" not in (await client.host()).images:
            await asyncio.sleep(0.05)
    first, second, third = new_id(), new_id(), new_id()
    assert (await client.do(CreateVm, first, spec=spec)).error is None
    replaced = stage.add()
    assert (await client.do(CreateVm, second, spec=spec)).error is None
    assert stage.disk(first).read_bytes() == content
    assert stage.disk(second).read_bytes() == replaced
    rootfs = stage.agent.data_dir / "images" / "web" / "rootfs"
    rootfs.chmod(0o644)
    with rootfs.open("r+b") as file:
        file.write(b"damage")
    refused = await client.do(CreateVm, third, spec=spec)
    assert refused.error is not None
    assert refused.error.code is ErrorCode.UNKNOWN_IMAGE
    assert "rootfs" in refused.error.message
    # A VM that has its disk needs the image's kernel only.
    assert (await client.do(BootVm, second)).state is VmState.RUNNING


@pytest.mark.hypervisor
@pytest.mark.parametrize("name", REAL_DRIVERS)
async def test_a_guest_writes_to_its_own_disk_only(tmp_path: Path, lab: Lab, name: str) -> None:
    """A mebibyte written at the beginning: there it is, and nowhere else."""
    lab.require(name)
    settings = {"driver": name}
    if name == "firecracker" and lab.firecracker is not None:
        settings["firecracker"] = str(lab.firecracker)
    (tmp_path / "kernel").write_bytes(lab.image.kernel.read_bytes())
    async with (
        bus_with_streams(tmp_path / "nats") as (server, bus),
        agent(tmp_path / "agent", server.url, tmp_path / "kernel", **settings) as process,
    ):
        stage = Stage(process, Client(bus), tmp_path)
        content = stage.add()
        vms = [new_id(), new_id()]
        for vm_id in vms:
            spec = VmSpec(image="web", memory_mib=64, network=False, kernel_args={"blkw": "1024"})
            assert (await stage.client.do(CreateVm, vm_id, spec=spec)).error is None
        assert (await stage.client.do(BootVm, vms[0])).error is None
        async with asyncio.timeout(30):
            await stage.client.frames_until(
                lambda frames: any(
                    sample.counters.disk_write_bytes == MIB for sample in samples_of(frames, vms[0])
                )
            )
        assert (await stage.client.do(ShutdownVm, vms[0])).error is None
        await stage.client.frames_until(has_final(vms[0]))
        written = stage.disk(vms[0]).read_bytes()
        assert written[:MIB] != content[:MIB]
        assert written[MIB:] == content[MIB:]
        assert stage.disk(vms[1]).read_bytes() == content
        stage.store.verify("web")
