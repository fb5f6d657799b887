"""File and FIFO with VMMs that write and agents that die: exact, or the loss is on the record."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from tests.support.hypervisors import DISK_BYTES, Lab, Rig, open_lab, rig
from tests.support.killed_reader import Order
from tests.support.metrics import KINDS, events
from vm_agent.drivers.abc import DeviceCounters, MachinePlan, Vmm
from vm_agent.drivers.jail import root_of
from vm_agent.drivers.metrics import MetricsKind, open_metrics
from vm_agent.drivers.metrics_lines import METRICS, METRICS_STATE
from vm_agent.drivers.paths import API_SOCKET
from vm_agent.drivers.unix_http import UnixHttpConnection
from vm_agent.simulator.load import Load

pytestmark = pytest.mark.hypervisor

ROOT = Path(__file__).resolve().parents[2]
KILLS = 50
LONG, SHORT = 3000, 800
"""Loops of a guest that outlives fifty agents, and of one that some hundred flushes fall into."""

DOUBLE_THE_PIPE = 400
"""Flushes; the pipe holds some 170."""

FLUSHES_ON_A_FULL_DISK = 250
"""Twice what the file's reserve takes; the guest must still be at work after them."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Guest and hypervisors, tried out once."""
    with open_lab() as made:
        made.patience_s = 60  # these guests have a lot to do
        yield made


def work_plan(bench: Rig, loops: int) -> MachinePlan:
    """A guest that works for some seconds."""
    return bench.plan(blkw=512, blkr=256, loop=loops)


def work_counters(loops: int) -> DeviceCounters:
    """What it has done at its end."""
    return DeviceCounters(disk_write_bytes=loops * 512 * 1024, disk_read_bytes=loops * 256 * 1024)


async def kill_readers(bench: Rig, vmm: Vmm) -> None:
    """Let agents read that VMM and be killed, one after the other."""
    order = Order(
        driver=bench.name,
        firecracker=str(bench.lab.firecracker) if bench.lab.firecracker else None,
        vmm=vmm,
        kills=KILLS,
        seed=vmm.pid,
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.killed_reader"),
        msgspec.json.encode(order).decode(),
        cwd=ROOT,
    )
    try:
        async with asyncio.timeout(60):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def flush(vmm: Vmm, times: int) -> list[int]:
    """Status codes of flushes that nobody reads."""
    api = UnixHttpConnection(root_of(Path(vmm.run_dir)) / API_SOCKET)
    try:
        return [
            (await api.request("PUT", "/actions", b'{"action_type":"FlushMetrics"}')).status
            for _ in range(times)
        ]
    finally:
        await api.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_fifty_killed_agents_lose_and_double_no_byte(lab: Lab, kind: MetricsKind) -> None:
    """Firecracker's guest works all the while; the next agent ends it and has all its bytes."""
    async with rig(lab, "firecracker", kind) as bench:
        vmm = await bench.create(work_plan(bench, LONG))
        await bench.driver.boot(vmm)
        await bench.driver.close()
        await kill_readers(bench, vmm)
        await bench.says(vmm, "DONE")
        driver = await bench.restart_agent()
        await driver.kill(vmm)
        assert await driver.counters(vmm) == work_counters(LONG)


@pytest.mark.parametrize("kind", KINDS)
async def test_the_simulators_numbers_outlive_fifty_killed_agents(
    lab: Lab, kind: MetricsKind
) -> None:
    """All five are those of one and the same moment, and that is the moment of its end."""
    async with rig(lab, "simulator", kind) as bench:
        plan = bench.plan()
        started = time.monotonic()
        vmm = await bench.create(plan)
        await bench.driver.boot(vmm)
        booted = time.monotonic()
        await bench.driver.close()
        await kill_readers(bench, vmm)
        driver = await bench.restart_agent()
        pausing = time.monotonic()
        await driver.pause(vmm)
        paused = time.monotonic()
        await driver.kill(vmm)
        final = await driver.counters(vmm)
        load = Load(str(plan.vm_id), vcpus=1, disk=True, nic=False)
        shortest_ms = int((pausing - booted) * 1000)
        longest_ms = int((paused - started) * 1000) + 1
        possible = [load.at(ms) for ms in range(shortest_ms, longest_ms + 1)]
        assert (
            final.cpu_ns,
            final.disk_read_bytes,
            final.disk_write_bytes,
            final.net_rx_bytes,
            final.net_tx_bytes,
        ) in possible


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["firecracker", "simulator"])
async def test_what_a_full_pipe_loses_is_told(
    lab: Lab, name: str, kind: MetricsKind, caplog: pytest.LogCaptureFixture
) -> None:
    """A file takes any number of flushes without a reader. The FIFO ends, and that is logged."""
    async with rig(lab, name, kind) as bench:
        vmm = await bench.create(work_plan(bench, SHORT))
        await bench.driver.boot(vmm)
        await bench.driver.close()
        statuses = await flush(vmm, DOUBLE_THE_PIPE * (20 if name == "simulator" else 1))
        refused = statuses.count(400)
        await bench.says(vmm, "READY" if bench.driver.simulated else "DONE")
        driver = await bench.restart_agent()
        final = await driver.counters(vmm)
        if kind == "file":
            assert refused == 0
            assert bench.driver.simulated or final == work_counters(SHORT)
            assert events(caplog) == []
            return
        assert refused > 0
        assert statuses == sorted(statuses)  # full is full: all after the first
        assert "metrics.pipe_full" in events(caplog)
        if name == "firecracker":
            assert statuses.count(204) > 150
            assert final.disk_write_bytes <= work_counters(SHORT).disk_write_bytes
        # It was read, so there is room again.
        assert await flush(vmm, 1) == [204]


async def test_a_refused_flush_is_told_and_costs_only_itself(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    """What the VMM handed out and could not write is gone, and on the record for good."""
    async with rig(lab, "firecracker", "fifo") as bench:
        vmm = await bench.booted(blkw=3072, blkr=1536)
        driver = bench.driver
        first = await driver.counters(vmm)
        with (root_of(Path(vmm.run_dir)) / METRICS).open("r+b", buffering=0) as pipe:
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 4096)  # no line fits
            for number in (1, 2):
                assert await driver.counters(vmm) == first
                assert events(caplog).count("metrics.lost") == number
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 1 << 20)
        assert await driver.counters(vmm) == first
        run_dir = Path(vmm.run_dir)
        await driver.close()
        channel = open_metrics(root_of(run_dir), run_dir / METRICS_STATE)
        assert channel.totals.lost_flushes == 2
        channel.close()


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 32 MiB; skips where none can be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "decisec-test", str(folder)]
    umount = ["umount", "--lazy", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(umount, check=True)


def fill(disk: Path) -> Path:
    """Take all the space that is left."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler


async def after(bench: Rig, vmm: Vmm, before: DeviceCounters) -> DeviceCounters:
    """The first counters that say that the guest has written more."""
    async with asyncio.timeout(bench.lab.patience_s):
        while True:
            now = await bench.driver.counters(vmm)
            if (now.disk_write_bytes or 0) > (before.disk_write_bytes or 0):
                return now


@pytest.mark.parametrize("kind", KINDS)
async def test_a_full_disk_loses_nothing(
    lab: Lab, kind: MetricsKind, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The FIFO needs none, the file has reserved some; the state is written in place."""
    with small_disk(tmp_path / "disk") as disk:
        async with rig(lab, "firecracker", kind) as bench:
            bench.run_root = bench.directory = disk
            plan = work_plan(bench, SHORT)
            assert plan.disk is not None
            # The guest's own writes find space: this is about its metrics.
            with plan.disk.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, DISK_BYTES)
            vmm = await bench.create(plan)
            await bench.driver.boot(vmm)
            first = await after(bench, vmm, DeviceCounters())
            filler = fill(disk)
            for _ in range(FLUSHES_ON_A_FULL_DISK):
                last = await bench.driver.counters(vmm)
            if last == first:
                last = await after(bench, vmm, first)
            assert (
                first.disk_write_bytes
                < last.disk_write_bytes
                < work_counters(SHORT).disk_write_bytes
            )
            with pytest.raises(OSError, match="space"):
                (disk / "more").write_bytes(bytes(4096))
            filler.unlink()
            await bench.says(vmm, "DONE")
            await bench.driver.kill(vmm)
            assert await bench.driver.counters(vmm) == work_counters(SHORT)
            assert events(caplog) == []


@pytest.mark.parametrize("kind", KINDS)
async def test_an_end_while_no_agent_is_there(
    lab: Lab, kind: MetricsKind, caplog: pytest.LogCaptureFixture
) -> None:
    """The file has the last line of Firecracker's exit. The FIFO died with it: that is logged."""
    async with rig(lab, "firecracker", kind) as bench:
        vmm = await bench.booted(blkw=3072, blkr=1536)
        await bench.driver.shutdown(vmm)
        await bench.driver.close()
        await bench.exits(vmm)
        driver = await bench.restart_agent()
        final = await driver.counters(vmm)
        if kind == "file":
            assert (final.disk_write_bytes, final.disk_read_bytes) == (3_145_728, 1_572_864)
            assert events(caplog) == []
        else:
            assert final == DeviceCounters()
            assert events(caplog) == ["metrics.pipe_lost"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_vmm_keeps_its_channel_when_the_setting_changes(
    lab: Lab, kind: MetricsKind
) -> None:
    """Agents that would start new VMMs with the other channel go on with the one that is there."""
    other: MetricsKind = "fifo" if kind == "file" else "file"
    async with rig(lab, "firecracker", kind) as bench:
        vmm = await bench.booted(blkw=3072, blkr=1536)
        first = await bench.driver.counters(vmm)
        await bench.driver.close()
        driver = bench.driver = lab.driver(bench.name, bench.processes, other)
        assert (root_of(Path(vmm.run_dir)) / METRICS).is_fifo() == (kind == "fifo")
        assert await driver.counters(vmm) == first
        await driver.kill(vmm)
        newer = await bench.booted()
        assert (root_of(Path(newer.run_dir)) / METRICS).is_fifo() == (other == "fifo")
