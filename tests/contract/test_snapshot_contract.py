"""One suite for every driver that can take snapshots."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from schemas.vms import SnapshotKind
from tests.support.hypervisors import Rig, processes_in
from vm_agent.drivers.abc import (
    Ability,
    DeviceCounters,
    DriverError,
    MachinePlan,
    Snapshots,
    Vmm,
    VmmState,
)

pytestmark = pytest.mark.hypervisor

ROUND_READ, ROUND_WRITE, ROUNDS = 4 * 1024, 16 * 1024, 60
STEADY = {"blkw": 16, "blkr": 4, "loop": ROUNDS, "hz": 100}


def snapshots_of(bench: Rig) -> Snapshots:
    """The bench's driver; skips the test if it takes none."""
    if Ability.SNAPSHOT not in bench.driver.abilities:
        pytest.skip(f"{bench.name} takes no snapshots")
    assert isinstance(bench.driver, Snapshots)
    return bench.driver


def folder_for(bench: Rig, name: str = "snapshot") -> Path:
    """A new folder, outside all run directories."""
    folder = bench.directory / name
    folder.mkdir()
    return folder


def work(bench: Rig) -> dict[str, Any]:
    """What keeps the guest busy for a while, where it can be."""
    return STEADY if bench.exact else {}


async def paused_at_work(bench: Rig) -> tuple[MachinePlan, Vmm, DeviceCounters]:
    """A paused VM whose guest has done a part of its work, and how much."""
    plan = bench.plan(**work(bench))
    vmm = await bench.create(plan)
    await bench.driver.boot(vmm)
    await bench.says(vmm, "READY")
    async with asyncio.timeout(10):
        while bench.exact and not (await bench.driver.counters(vmm)).disk_write_bytes:
            await asyncio.sleep(0.005)
    await bench.driver.pause(vmm)
    return plan, vmm, await bench.driver.counters(vmm)


def successor(bench: Rig, plan: MachinePlan, folder: Path) -> MachinePlan:
    """A plan for another VM that goes on from a snapshot, with a copy of the disk."""
    new = bench.plan(**work(bench))
    assert plan.disk is not None
    assert new.disk is not None
    shutil.copyfile(plan.disk, new.disk)
    return replace(new, snapshot=folder)


def rest(bench: Rig, done: DeviceCounters) -> DeviceCounters:
    """What is left of the guest's work."""
    if not bench.exact:
        return DeviceCounters()
    return DeviceCounters(
        disk_read_bytes=ROUND_READ * ROUNDS - done.disk_read_bytes,
        disk_write_bytes=ROUND_WRITE * ROUNDS - done.disk_write_bytes,
    )


async def test_a_guest_goes_on_after_its_snapshot(bench: Rig) -> None:
    """It stays paused until it is resumed, and finishes its work to the byte; also twice."""
    driver, snapshots = bench.driver, snapshots_of(bench)
    _, vmm, done = await paused_at_work(bench)
    for name in ("one", "two"):
        await snapshots.snapshot(vmm, folder_for(bench, name), SnapshotKind.FULL)
        assert await driver.inspect(vmm) is VmmState.PAUSED
        assert await driver.counters(vmm) == done
    await driver.resume(vmm)
    await bench.says(vmm, "DONE")
    await driver.kill(vmm)
    final = await driver.counters(vmm)
    left = rest(bench, done)
    assert final.disk_read_bytes == done.disk_read_bytes + left.disk_read_bytes
    assert final.disk_write_bytes == done.disk_write_bytes + left.disk_write_bytes


async def test_a_guest_goes_on_from_its_snapshot_as_another_vm(bench: Rig) -> None:
    """Paused first, with counters at zero; then it does what was left, and no more."""
    driver, snapshots = bench.driver, snapshots_of(bench)
    plan, vmm, done = await paused_at_work(bench)
    folder = folder_for(bench)
    await snapshots.snapshot(vmm, folder, SnapshotKind.FULL)
    next_plan = successor(bench, plan, folder)
    await driver.kill(vmm)
    restored = await bench.create(next_plan)
    assert restored.vm_id != vmm.vm_id
    assert await driver.inspect(restored) is VmmState.PAUSED
    assert await driver.counters(restored) == DeviceCounters()
    await driver.boot(restored)
    assert await driver.inspect(restored) is VmmState.PAUSED
    await driver.resume(restored)
    assert await driver.inspect(restored) is VmmState.RUNNING
    if bench.exact:
        await bench.says(restored, "DONE")
        assert "READY" not in driver.console(next_plan.run_dir).read_text()
    await driver.kill(restored)
    assert await driver.counters(restored) == rest(bench, done)
    assert await driver.counters(vmm) == done
    await driver.destroy(restored)
    assert list(next_plan.run_dir.iterdir()) == []


async def test_one_snapshot_makes_more_than_one_vm(bench: Rig) -> None:
    """Its files are read only, so they serve again."""
    driver, snapshots = bench.driver, snapshots_of(bench)
    plan, vmm, _ = await paused_at_work(bench)
    folder = folder_for(bench)
    await snapshots.snapshot(vmm, folder, SnapshotKind.FULL)
    await driver.kill(vmm)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    twins = [await bench.create(successor(bench, plan, folder)) for _ in range(2)]
    for twin in twins:
        await driver.resume(twin)
        assert await driver.inspect(twin) is VmmState.RUNNING
        await driver.kill(twin)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


async def test_a_running_guest_gives_no_snapshot(bench: Rig) -> None:
    """The driver says so, and the guest runs on."""
    driver, snapshots = bench.driver, snapshots_of(bench)
    vmm = await bench.booted()
    with pytest.raises(DriverError):
        await snapshots.snapshot(vmm, folder_for(bench), SnapshotKind.FULL)
    assert await driver.inspect(vmm) is VmmState.RUNNING
    await driver.kill(vmm)


async def test_a_folder_without_a_snapshot_makes_no_vm(bench: Rig) -> None:
    """Nothing of the new VM is left."""
    snapshots_of(bench)
    plan = replace(bench.plan(), snapshot=folder_for(bench))
    with pytest.raises(DriverError):
        await bench.create(plan)
    assert not processes_in(plan.run_dir)
    assert list(plan.run_dir.iterdir()) == []


async def test_a_diff_snapshot_is_refused_without_the_ability(bench: Rig) -> None:
    """A driver does what it declares, or says no."""
    driver, snapshots = bench.driver, snapshots_of(bench)
    if Ability.DIFF_SNAPSHOT in driver.abilities:
        pytest.skip(f"{bench.name} takes diff snapshots")
    _, vmm, _ = await paused_at_work(bench)
    with pytest.raises(DriverError, match="diff"):
        await snapshots.snapshot(vmm, folder_for(bench), SnapshotKind.DIFF)
    await driver.kill(vmm)
