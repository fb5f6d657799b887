"""The agent with real hypervisors: what the tiny guest does is billed to the byte."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import UUID

import pytest

from schemas.commands import ShutdownVm
from schemas.events import VmStopped
from schemas.frames import Frame
from schemas.hosts import OperationStatus
from schemas.vms import VmSpec
from tests.support.agents import AgentProcess, Client, booted, running_agent
from tests.support.hypervisors import REAL_DRIVERS, Lab
from tests.support.processes import check_spinning, waited_ns
from tests.support.samples import Sample, assert_exact, assert_no_hole, has_final, samples_of
from vm_agent.drivers.metrics_lines import METRICS
from vm_agent.network import taps

pytestmark = [pytest.mark.hypervisor, pytest.mark.timeout(90)]

SPEC = VmSpec(
    image="tiny",
    memory_mib=64,
    disk_mib=8,
    kernel_args={"blkw": "3072", "blkr": "1536", "tx": "1000"},
)
SENT_BYTES = 1_000_000
WINDOW_MS = 3000


@pytest.mark.parametrize(
    ("name", "metrics"), [("firecracker", "file"), ("firecracker", "fifo"), ("qemu", "file")]
)
async def test_bytes_and_time_are_exact_over_a_crash_of_the_agent(
    tmp_path: Path, lab: Lab, name: str, metrics: str
) -> None:
    """3 MiB written, 1.5 MiB read, 1000 frames sent: event, status and last frame say just that."""
    if reason := taps.available():
        pytest.skip(reason)
    async with running_agent(tmp_path, lab, name, metrics=metrics) as (process, client):
        first_run = (await client.host()).run_id
        vm_id = await booted(client, SPEC)
        fifos = [path for path in process.data_dir.rglob(METRICS) if path.is_fifo()]
        assert len(fifos) == (1 if metrics == "fifo" else 0)

        def guest_is_done(frames: list[Frame]) -> bool:
            samples = samples_of(frames, vm_id)
            return bool(samples) and samples[-1].counters.net_tx_bytes == SENT_BYTES

        async with asyncio.timeout(40):
            await client.frames_until(guest_is_done)
        await process.kill()
        await process.start()
        assert (await client.host(other_than=first_run)).driver == name
        stopped = await client.do(ShutdownVm, vm_id)
        assert stopped.status is OperationStatus.SUCCEEDED, stopped
        frames = await client.frames_until(has_final(vm_id))
        (event,) = [e for e in await client.events() if isinstance(e, VmStopped)]
        status = await client.status(vm_id)
    assert_no_hole(frames)
    samples = samples_of(frames, vm_id)
    assert_exact(samples)
    final = samples[-1].counters
    assert status is not None
    assert final == event.final_counters == status.final_counters
    assert (final.disk_write_bytes, final.disk_read_bytes) == (3_145_728, 1_572_864)
    assert (final.net_tx_bytes, final.net_rx_bytes) == (SENT_BYTES, 0)
    assert 0 < final.cpu_ns <= final.uptime_ms * 1_000_000 * 2
    assert final.mem_kib_ms == 64 * 1024 * final.uptime_ms


@pytest.mark.parametrize("name", REAL_DRIVERS)
async def test_cpu_is_billed_as_it_is_used(tmp_path: Path, lab: Lab, name: str) -> None:
    """A spinning guest 1.00 ± 0.02 CPU seconds per second, an idle one below 0.01.

    In the samples that are billed, with the agent asking the VMM ten times a second; of the time
    in which the host let the vCPU run.
    """
    async with running_agent(tmp_path, lab, name) as (process, client):
        idle = await booted(client, VmSpec(image="tiny", memory_mib=64))
        assert await _cpu_ratio(process, client, idle) < 0.01
        spinning = await booted(
            client, VmSpec(image="tiny", memory_mib=64, kernel_args={"spin": "1"})
        )
        await check_spinning(lambda: _cpu_ratio(process, client, spinning))


async def _cpu_ratio(process: AgentProcess, client: Client, vm_id: UUID) -> float:
    """CPU seconds per second, by samples, less the time in which others had the CPU."""
    pid, _ = process.vmm_of(vm_id)
    waited = waited_ns(pid)
    first = await _newest(client, vm_id)
    last = await _newest(client, vm_id, after_ms=first.tick_ms + WINDOW_MS)
    elapsed_ns = (last.tick_ms - first.tick_ms) * 1_000_000
    used_ns = last.counters.cpu_ns - first.counters.cpu_ns
    return used_ns / (elapsed_ns - (waited_ns(pid) - waited))


async def _newest(client: Client, vm_id: UUID, after_ms: int = 0) -> Sample:
    """The newest sample that is no baseline, once it is younger than that."""

    def there(frames: list[Frame]) -> bool:
        samples = samples_of(frames, vm_id)
        return bool(samples) and samples[-1].flags == 0 and samples[-1].tick_ms >= after_ms

    return samples_of(await client.frames_until(there), vm_id)[-1]
