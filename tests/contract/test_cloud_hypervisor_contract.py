"""What Cloud Hypervisor does in its own way: over the stand-in, and a real one where there is."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from schemas.vms import ExitReason, SnapshotKind
from tests.support.hypervisors import STAND_IN, Lab, Rig, processes_in, rig
from vm_agent.drivers.abc import DeviceCounters, DriverError, Snapshots, VmmState
from vm_agent.drivers.cloud_hypervisor_api import API_ROOT
from vm_agent.drivers.jail import root_of
from vm_agent.drivers.paths import API_SOCKET
from vm_agent.drivers.unix_http import Answer, UnixHttpConnection
from vm_agent.process import is_alive

pytestmark = pytest.mark.hypervisor

WORK = {"blkw": 3072, "blkr": 1536}


@pytest.fixture(params=["cloud-hypervisor", STAND_IN])
async def bench(request: pytest.FixtureRequest, lab: Lab) -> AsyncIterator[Rig]:
    """The driver; checks afterwards that no process is left."""
    async with rig(lab, request.param) as made:
        yield made
    assert not processes_in(made.directory)


def worked(bench: Rig, times: int) -> DeviceCounters:
    """What the guest has used after doing its work so often."""
    if not bench.exact:
        return DeviceCounters()
    return DeviceCounters(disk_read_bytes=1_572_864 * times, disk_write_bytes=3_145_728 * times)


async def ask(run_dir: str, action: str, body: bytes = b"") -> Answer:
    """Do something behind the driver's back."""
    connection = UnixHttpConnection(root_of(Path(run_dir)) / API_SOCKET)
    try:
        return await connection.request("PUT", API_ROOT + action, body)
    finally:
        await connection.close()


async def says_done(bench: Rig, run_dir: str, times: int) -> None:
    """Wait until the guest has done its work so often."""
    console = bench.driver.console(Path(run_dir))
    async with asyncio.timeout(10):
        while console.read_text().count("DONE") < times:
            await asyncio.sleep(0.005)


async def test_a_guest_that_resets_goes_on_and_loses_no_count(bench: Rig) -> None:
    """In the same process, with what was read before added up; and so after a kill."""
    driver = bench.driver
    vmm = await bench.booted(**WORK)
    for times in (1, 2, 3):
        await says_done(bench, vmm.run_dir, times)
        # The reset is to be younger than the reading beyond doubt.
        assert await driver.counters(vmm) == worked(bench, times)
        await asyncio.sleep(0.1)
        assert (await ask(vmm.run_dir, "vm.reboot")).status == 204
    await says_done(bench, vmm.run_dir, 4)
    assert await driver.inspect(vmm) is VmmState.RUNNING
    await driver.kill(vmm)
    assert await driver.counters(vmm) == worked(bench, 4)


async def test_a_reset_without_an_agent_loses_no_count_that_was_read(bench: Rig) -> None:
    """The next agent sees counters that have not gone down, and the event that explains them."""
    vmm = await bench.booted(**WORK)
    assert await bench.driver.counters(vmm) == worked(bench, 1)
    await asyncio.sleep(0.1)
    await bench.driver.close()
    assert (await ask(vmm.run_dir, "vm.reboot")).status == 204
    await says_done(bench, vmm.run_dir, 2)
    driver = await bench.restart_agent()
    assert await driver.inspect(vmm) is VmmState.RUNNING
    assert await driver.counters(vmm) == worked(bench, 2)
    await driver.kill(vmm)
    assert await driver.counters(vmm) == worked(bench, 2)


async def test_a_reset_that_was_never_read_before_is_only_the_new_machines(bench: Rig) -> None:
    """What nobody read is lost with the machine, and not made up."""
    vmm = await bench.booted(**WORK)
    assert (await ask(vmm.run_dir, "vm.reboot")).status == 204
    await says_done(bench, vmm.run_dir, 2)
    assert await bench.driver.counters(vmm) == worked(bench, 1)
    await bench.driver.kill(vmm)


async def test_a_guest_that_is_told_to_stop_is_read_to_its_end(lab: Lab) -> None:
    """What it writes in its last moments counts, although nobody else asks."""
    async with rig(lab, STAND_IN) as bench:
        plan = bench.plan(blkw=16, blkr=4, loop=60, hz=100)
        vmm = await bench.create(replace(plan, kernel_args=f"{plan.kernel_args} tidy=1000"))
        await bench.driver.boot(vmm)
        await bench.says(vmm, "READY")
        await bench.driver.shutdown(vmm)
        await bench.driver.shutdown(vmm)
        await bench.exits(vmm)
        assert await bench.driver.counters(vmm) == DeviceCounters(
            disk_read_bytes=60 * 4096, disk_write_bytes=60 * 16_384
        )


async def test_a_machine_that_somebody_shut_down_ends_its_vmm(bench: Rig) -> None:
    """The VMM would stay without a guest; the next look ends it, also a new agent's."""
    vmm = await bench.booted(**WORK)
    assert await bench.driver.counters(vmm) == worked(bench, 1)
    assert (await ask(vmm.run_dir, "vm.shutdown")).status == 204
    assert is_alive(vmm.pid, vmm.start_ticks)
    driver = await bench.restart_agent()
    async with asyncio.timeout(10):
        while await driver.inspect(vmm) is not VmmState.GONE:
            await asyncio.sleep(0.01)
    assert await driver.counters(vmm) == worked(bench, 1)
    assert driver.exit_reason(vmm, None) is ExitReason.GUEST_SHUTDOWN


async def test_a_terminated_vmm_ends_in_order(bench: Rig) -> None:
    """It cannot be told from a guest's own end; what was read is kept."""
    vmm = await bench.booted(**WORK)
    assert await bench.driver.counters(vmm) == worked(bench, 1)
    os.kill(vmm.pid, signal.SIGTERM)
    await bench.exits(vmm)
    status = await bench.processes.wait_exit(vmm.pid, vmm.start_ticks)
    assert bench.driver.exit_reason(vmm, status.exit_code) is ExitReason.GUEST_SHUTDOWN
    assert await bench.driver.counters(vmm) == worked(bench, 1)


async def test_a_refusal_says_why(bench: Rig) -> None:
    """In the VMM's own words, as one line."""
    vmm = await bench.create(bench.plan())
    with pytest.raises(DriverError, match=r"^cloud-hypervisor refused vm\.pause: .*not running$"):
        await bench.driver.pause(vmm)
    await bench.driver.kill(vmm)


@pytest.mark.parametrize("name", ["config.json", "state.json", "memory-ranges"])
async def test_a_damaged_snapshot_makes_no_vm(bench: Rig, name: str) -> None:
    """Whichever of its files is cut short; nothing of the new VM is left."""
    driver = bench.driver
    assert isinstance(driver, Snapshots)
    vmm = await bench.booted()
    await driver.pause(vmm)
    folder = bench.directory / "snapshot"
    folder.mkdir()
    await driver.snapshot(vmm, folder, SnapshotKind.FULL)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "memory-ranges", "state.json",
    ]  # fmt: skip
    await driver.kill(vmm)
    os.truncate(folder / name, (folder / name).stat().st_size // 2)
    plan = replace(bench.plan(), snapshot=folder)
    with pytest.raises(DriverError):
        await bench.create(plan)
    assert not processes_in(plan.run_dir)
    assert list(plan.run_dir.iterdir()) == []


async def test_a_snapshot_that_failed_does_not_spoil_the_next(bench: Rig) -> None:
    """What it has left in the run directory is cleared away."""
    driver = bench.driver
    assert isinstance(driver, Snapshots)
    vmm = await bench.booted()
    await driver.pause(vmm)
    missing = bench.directory / "missing"
    with pytest.raises(DriverError, match="cannot move"):
        await driver.snapshot(vmm, missing, SnapshotKind.FULL)
    missing.mkdir()
    await driver.snapshot(vmm, missing, SnapshotKind.FULL)
    assert await driver.inspect(vmm) is VmmState.PAUSED
    shutil.rmtree(missing)
    await driver.kill(vmm)
