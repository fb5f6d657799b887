"""A stock Linux in a microvm of QEMU: its kernel and the bill count the same bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TextIO
from uuid import UUID

import pytest

from decisec.devkit import guest as guest_kit
from decisec.devkit import linux as linux_kit
from decisec.devkit.uv import DevkitError
from schemas.commands import BootVm, Command, CreateVm, PauseVm, ResumeVm, ShutdownVm
from schemas.events import VmStopped
from schemas.hosts import OperationStatus
from schemas.ids import new_id
from schemas.vms import ExitReason, VmSpec, VmState
from tests.support.agents import Client, agent
from tests.support.hypervisors import Lab, rig
from tests.support.linux_guest import (
    ACCEL,
    ARP_BYTES,
    MEMORY_MIB,
    GuestTotals,
    Neighbour,
    linux_parts,
    open_linux_lab,
    totals_in,
)
from tests.support.nats import bus_with_streams
from tests.support.samples import assert_exact, assert_no_hole, has_final, samples_of
from vm_agent.drivers.abc import DeviceCounters, VmmState
from vm_agent.drivers.paths import CONSOLE
from vm_agent.images import ImageStore
from vm_agent.network import taps

pytestmark = [pytest.mark.hypervisor, pytest.mark.timeout(180)]

WRITTEN, READ, FRAMES_SENT = 3 * 1024 * 1024, 1536 * 1024, 100
WORK = {"blkw": 3072, "blkr": 1536, "tx": FRAMES_SENT}
PARTITION_SCAN = 64 * 1024
"""The kernel looks for a partition table: some KiB at most."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The Linux image."""
    with open_linux_lab() as made:
        yield made


async def test_linux_is_counted_as_it_counts_itself(lab: Lab) -> None:
    """Disk and network, over a pause, to the byte; the power button ends it."""
    async with rig(lab, "qemu") as bench:
        driver = bench.driver
        nic = await bench.nic()
        counted = await taps.TapCounters.open(nic)
        neighbour = await Neighbour.on(nic)
        vmm = await bench.create(bench.plan(nic=nic, blkw=3072, blkr=1536, tx=FRAMES_SENT))
        await driver.boot(vmm)
        await bench.says(vmm, "READY")
        await bench.says(vmm, "DONE")
        assert counted.read() == (0, FRAMES_SENT * 1000)

        neighbour.ask()
        assert await neighbour.hears_answer()
        await driver.pause(vmm)
        assert await driver.inspect(vmm) is VmmState.PAUSED
        neighbour.ask()
        assert not await neighbour.hears_answer(within_s=0.5)
        await driver.resume(vmm)
        assert await driver.inspect(vmm) is VmmState.RUNNING
        assert await neighbour.hears_answer()

        await driver.shutdown(vmm)
        await bench.exits(vmm)
        await bench.says(vmm, "BYE")
        totals = totals_in(driver.console(Path(vmm.run_dir)).read_text())
        status = await bench.processes.wait_exit(vmm.pid, vmm.start_ticks)
        assert driver.exit_reason(vmm, status.exit_code) is ExitReason.GUEST_SHUTDOWN
        assert await driver.counters(vmm) == DeviceCounters(
            disk_read_bytes=totals.disk_read, disk_write_bytes=totals.disk_written
        )
        assert counted.read() == (totals.net_received, totals.net_sent)
        check_work(totals, answers=2)
        neighbour.close()
        counted.close()


def check_work(totals: GuestTotals, *, answers: int) -> None:
    """The guest has done what it was told, and nothing else."""
    assert totals.disk_written == WRITTEN
    assert READ <= totals.disk_read <= READ + PARTITION_SCAN
    assert totals.net_received == answers * ARP_BYTES
    assert totals.net_sent == FRAMES_SENT * 1000 + answers * ARP_BYTES


async def test_a_linux_of_two_cpus_is_killed_with_its_last_bytes_counted(lab: Lab) -> None:
    """Without being asked, and on a machine without network."""
    async with rig(lab, "qemu") as bench:
        vmm = await bench.create(replace(bench.plan(blkw=3072), vcpus=2))
        await bench.driver.boot(vmm)
        await bench.says(vmm, "DONE")
        await bench.says(vmm, "CPUS 2")
        await bench.driver.kill(vmm)
        status = await bench.processes.wait_exit(vmm.pid, vmm.start_ticks)
        assert bench.driver.exit_reason(vmm, status.exit_code) is ExitReason.KILLED
        counters = await bench.driver.counters(vmm)
        assert counters.disk_write_bytes == WRITTEN
        assert counters.disk_read_bytes <= PARTITION_SCAN


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny guest, which every agent boots first to see that its hypervisor works."""
    kernel = tmp_path_factory.mktemp("tiny") / "guest"
    try:
        guest_kit.build(kernel)
    except DevkitError as error:
        pytest.skip(f"the tiny guest cannot be built: {error}")
    return kernel


async def test_an_agent_bills_linux_as_it_counts_itself(tmp_path: Path, tiny: Path) -> None:
    """From the command on the bus to the last sample and the event that says why it ended."""
    if reason := taps.available():
        pytest.skip(reason)
    parts = linux_parts()
    spec = VmSpec(
        image=linux_kit.IMAGE,
        memory_mib=MEMORY_MIB,
        disk_mib=8,
        kernel_args={name: str(value) for name, value in WORK.items()},
    )
    vm_id = new_id()
    folder = tmp_path / "agent"
    async with (
        bus_with_streams(tmp_path / "nats") as (server, bus),
        agent(folder, server.url, tiny, driver="qemu", qemu_accel=ACCEL),
    ):
        client = Client(bus)
        linux_kit.add_to(ImageStore(folder / "images"), parts)
        await succeeds(client, CreateVm, vm_id, spec=spec)
        await succeeds(client, BootVm, vm_id)
        # The agent removes the file with the VMM; what is open can still be read.
        with (folder / "run" / f"{vm_id.hex}-1" / CONSOLE).open() as console:
            await until_it_says(console, "DONE")
            await succeeds(client, PauseVm, vm_id)
            await succeeds(client, ResumeVm, vm_id)
            await succeeds(client, ShutdownVm, vm_id, grace_s=50.0)
            frames = await client.frames_until(has_final(vm_id))
            totals = totals_in(text_of(console))
        (event,) = [e for e in await client.events() if isinstance(e, VmStopped)]
        status = await client.status(vm_id)
    check_work(totals, answers=0)
    assert_no_hole(frames)
    samples = samples_of(frames, vm_id)
    assert_exact(samples)
    final = samples[-1].counters
    assert (final.disk_read_bytes, final.disk_write_bytes) == (
        totals.disk_read,
        totals.disk_written,
    )
    assert (final.net_rx_bytes, final.net_tx_bytes) == (totals.net_received, totals.net_sent)
    assert final.mem_kib_ms == MEMORY_MIB * 1024 * final.uptime_ms
    assert event.reason is ExitReason.REQUESTED
    assert status is not None
    assert status.state is VmState.STOPPED
    assert final == event.final_counters == status.final_counters


async def succeeds(
    client: Client, kind: Callable[..., Command], vm_id: UUID, **fields: object
) -> None:
    """Have the agent do something."""
    done = await client.do(kind, vm_id, **fields)
    assert done.status is OperationStatus.SUCCEEDED, done


async def until_it_says(console: TextIO, word: str) -> None:
    """Wait until the guest has printed a word."""
    async with asyncio.timeout(60):
        while word not in text_of(console):
            await asyncio.sleep(0.05)


def text_of(console: TextIO) -> str:
    """All that is in an open file by now."""
    console.seek(0)
    return console.read()
