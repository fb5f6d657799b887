"""Snapshots on a real Firecracker: full and diff, restored under another VM's id."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from schemas.vms import SnapshotKind
from tests.support.hypervisors import Lab, Rig, rig
from vm_agent.drivers.abc import (
    DeviceCounters,
    DiffSnapshots,
    DriverError,
    Snapshots,
    Vmm,
    VmmState,
)
from vm_agent.drivers.firecracker_snapshot import MEMORY, STATE, take
from vm_agent.drivers.jail import root_of

pytestmark = pytest.mark.hypervisor

ROUNDS, KIB = 6000, 64
TOTAL = ROUNDS * KIB * 1024


@pytest.fixture
async def bench(lab: Lab) -> AsyncIterator[Rig]:
    """The driver as an agent has it."""
    async with rig(lab, "firecracker") as made:
        yield made


async def paused_amid_its_work(bench: Rig, track_memory: bool = False) -> tuple[Vmm, int]:
    """A guest that has written some of its bytes, and how many."""
    vmm = await bench.create(replace(bench.plan(blkw=KIB, loop=ROUNDS), track_memory=track_memory))
    await bench.driver.boot(vmm)
    async with asyncio.timeout(20):
        while not (await bench.driver.counters(vmm)).disk_write_bytes:
            await asyncio.sleep(0)
    await bench.driver.pause(vmm)
    written = (await bench.driver.counters(vmm)).disk_write_bytes
    assert 0 < written < TOTAL, "the guest was too quick for this test"
    return vmm, written


async def snapshot(bench: Rig, vmm: Vmm, kind: SnapshotKind, name: str) -> Path:
    """Take one into a folder of its own."""
    folder = bench.directory / name
    folder.mkdir()
    assert isinstance(bench.driver, Snapshots)
    await bench.driver.snapshot(vmm, folder, kind)
    assert sorted(path.name for path in folder.iterdir()) == [MEMORY, STATE]
    return folder


async def restored(bench: Rig, folder: Path) -> Vmm:
    """Another VM that goes on from a snapshot, standing still."""
    vmm = await bench.create(replace(bench.plan(), snapshot=folder))
    assert await bench.driver.inspect(vmm) is VmmState.PAUSED
    return vmm


async def finish(bench: Rig, vmm: Vmm) -> DeviceCounters:
    """Let a guest do the rest of its work."""
    await bench.driver.resume(vmm)
    await bench.says(vmm, "DONE")
    return await bench.driver.counters(vmm)


async def test_another_vm_goes_on_where_the_snapshot_was_taken(bench: Rig) -> None:
    """Each of them does the rest of the work, and is billed for just that."""
    vmm, written = await paused_amid_its_work(bench)
    folder = await snapshot(bench, vmm, SnapshotKind.FULL, "full")
    copies = [await restored(bench, folder) for _ in range(2)]
    for copy in copies:
        # Nothing of what the first one has used comes along.
        assert await bench.driver.counters(copy) == DeviceCounters()
        assert (await finish(bench, copy)).disk_write_bytes == TOTAL - written
    assert (await finish(bench, vmm)).disk_write_bytes == TOTAL
    for each in (vmm, *copies):
        await bench.driver.kill(each)


async def test_a_diff_over_its_base_is_a_whole_snapshot(bench: Rig) -> None:
    """It is small, and together they are where the guest was at the second one."""
    vmm, _ = await paused_amid_its_work(bench, track_memory=True)
    base = await snapshot(bench, vmm, SnapshotKind.FULL, "base")
    await bench.driver.resume(vmm)
    before = (await bench.driver.counters(vmm)).disk_write_bytes
    async with asyncio.timeout(20):
        while (await bench.driver.counters(vmm)).disk_write_bytes == before:
            await asyncio.sleep(0)
    await bench.driver.pause(vmm)
    written = (await bench.driver.counters(vmm)).disk_write_bytes
    assert written < TOTAL, "the guest was too quick for this test"
    diff = await snapshot(bench, vmm, SnapshotKind.DIFF, "diff")
    assert (diff / MEMORY).stat().st_size == (base / MEMORY).stat().st_size
    assert (diff / MEMORY).stat().st_blocks * 4 < (base / MEMORY).stat().st_blocks
    assert isinstance(bench.driver, DiffSnapshots)
    await bench.driver.complete(diff, base)
    copy = await restored(bench, diff)
    assert (await finish(bench, copy)).disk_write_bytes == TOTAL - written
    await bench.driver.kill(copy)
    await bench.driver.kill(vmm)


async def test_a_snapshot_may_be_deleted_while_a_vm_runs_from_it(bench: Rig) -> None:
    """Its memory lives on under the name that the VM has for it."""
    vmm, written = await paused_amid_its_work(bench)
    folder = await snapshot(bench, vmm, SnapshotKind.FULL, "full")
    copy = await restored(bench, folder)
    shutil.rmtree(folder)
    assert (await finish(bench, copy)).disk_write_bytes == TOTAL - written
    await bench.driver.kill(copy)
    await bench.driver.kill(vmm)


async def test_a_running_guest_cannot_be_taken(bench: Rig) -> None:
    """The VMM refuses, and nothing has changed."""
    vmm = await bench.booted()
    folder = bench.directory / "none"
    folder.mkdir()
    assert isinstance(bench.driver, Snapshots)
    with pytest.raises(DriverError, match="refused"):
        await bench.driver.snapshot(vmm, folder, SnapshotKind.FULL)
    assert await bench.driver.inspect(vmm) is VmmState.RUNNING
    assert not list(folder.iterdir())
    await bench.driver.kill(vmm)


async def test_a_snapshot_that_is_damaged_makes_no_vm(bench: Rig) -> None:
    """And leaves nothing behind."""
    vmm, _ = await paused_amid_its_work(bench)
    folder = await snapshot(bench, vmm, SnapshotKind.FULL, "full")
    state = folder / STATE
    state.chmod(0o644)
    with state.open("r+b") as file:
        file.seek(200)
        file.write(b"\xff" * 64)
    plan = replace(bench.plan(), snapshot=folder)
    with pytest.raises(DriverError, match="snapshot"):
        await bench.create(plan)
    assert not [p for p in plan.run_dir.iterdir() if p.name != "console.log"]
    await bench.driver.kill(vmm)


async def test_a_link_in_place_of_a_snapshot_is_not_taken(bench: Rig) -> None:
    """A hostile VMM would have the agent read the host's files into its customer's snapshot."""
    vmm, _ = await paused_amid_its_work(bench)
    root = root_of(Path(vmm.run_dir))
    assert isinstance(bench.driver, Snapshots)
    folder = bench.directory / "full"
    folder.mkdir()
    (root / "made.state").symlink_to("/etc/shadow")
    (root / "made.memory").write_bytes(b"")
    with pytest.raises(DriverError, match="something else"):
        await asyncio.to_thread(take, root, folder)
    assert not list(folder.iterdir())
    await bench.driver.kill(vmm)
