"""The measuring stick: a guest told to use so much is counted exactly so, on real hypervisors."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.support.hypervisors import REAL_DRIVERS, Lab, rig
from tests.support.processes import check_spinning, waited_ns
from vm_agent.network import taps
from vm_agent.process import cpu_ns

pytestmark = pytest.mark.hypervisor

CPU_WINDOW_S = 2.0


@pytest.mark.parametrize("how", ["shutdown", "kill"])
@pytest.mark.parametrize("name", REAL_DRIVERS)
async def test_bytes_are_counted_exactly(lab: Lab, name: str, how: str) -> None:
    """3 MiB written, 1.5 MiB read, 1000 frames of 1000 bytes sent; nothing received."""
    async with rig(lab, name) as bench:
        nic = await bench.nic()
        counted = await taps.TapCounters.open(nic)
        assert counted.read() == (0, 0)
        vmm = await bench.booted(nic=nic, blkw=3072, blkr=1536, tx=1000)
        await getattr(bench.driver, how)(vmm)
        await bench.exits(vmm)
        counters = await bench.driver.counters(vmm)
        assert counters.disk_write_bytes == 3_145_728
        assert counters.disk_read_bytes == 1_572_864
        assert counted.read() == (0, 1_000_000)
        await taps.destroy(nic)
        with pytest.raises(taps.NetworkError):
            counted.read()
        counted.close()


@pytest.mark.parametrize("name", REAL_DRIVERS)
async def test_bytes_are_counted_exactly_under_ten_readings_a_second(lab: Lab, name: str) -> None:
    """Readings in the middle of the work change nothing in the sum and never go back."""
    async with rig(lab, name) as bench:
        vmm = await bench.create(bench.plan(blkw=1024, blkr=512, loop=100))
        await bench.driver.boot(vmm)
        done = asyncio.create_task(bench.says(vmm, "DONE"), name="done")
        seen = []
        while not done.done():
            seen.append(await bench.driver.counters(vmm))
            await asyncio.wait([done], timeout=0.02)
        await done
        final = await bench.driver.counters(vmm)
        assert (final.disk_write_bytes, final.disk_read_bytes) == (104_857_600, 52_428_800)
        assert seen == sorted(seen, key=lambda c: (c.disk_write_bytes, c.disk_read_bytes))
        await bench.driver.kill(vmm)
        assert await bench.driver.counters(vmm) == final


@pytest.mark.parametrize("name", REAL_DRIVERS)
async def test_a_spinning_guest_uses_a_second_per_second(lab: Lab, name: str) -> None:
    """1.00 ± 0.02 by the process clock, of the time in which the host let its vCPU run."""
    async with rig(lab, name) as bench:
        vmm = await bench.booted(spin=1)
        await check_spinning(lambda: _cpu_ratio(vmm.pid))
        await bench.driver.kill(vmm)


@pytest.mark.parametrize("name", REAL_DRIVERS)
async def test_an_idle_guest_uses_almost_nothing(lab: Lab, name: str) -> None:
    """Below 0.01 CPU seconds per second."""
    async with rig(lab, name) as bench:
        vmm = await bench.booted()
        ratio = await _cpu_ratio(vmm.pid)
        await bench.driver.kill(vmm)
        assert ratio < 0.01


@pytest.mark.parametrize("name", REAL_DRIVERS)
async def test_the_final_cpu_time_is_read_from_the_zombie(lab: Lab, name: str) -> None:
    """The exit status holds at least what the clock said last, to the nanosecond."""
    async with rig(lab, name) as bench:
        vmm = await bench.booted(spin=1)
        last_ns = cpu_ns(vmm.pid)
        await bench.driver.kill(vmm)
        status = await bench.processes.wait_exit(vmm.pid, vmm.start_ticks)
        assert status.cpu_ns is not None
        assert last_ns <= status.cpu_ns < last_ns + 3_000_000_000


async def _cpu_ratio(pid: int) -> float:
    """CPU seconds per second over the window, less what other processes took from the VMM."""
    cpu, waited, wall = cpu_ns(pid), waited_ns(pid), time.monotonic_ns()
    await asyncio.sleep(CPU_WINDOW_S)
    used = cpu_ns(pid) - cpu
    return used / (time.monotonic_ns() - wall - (waited_ns(pid) - waited))
