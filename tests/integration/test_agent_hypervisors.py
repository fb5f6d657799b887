"""The agent with real hypervisors: what the tiny guest does is billed to the byte."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.commands import BootVm, CreateVm, ShutdownVm
from schemas.events import VmStopped
from schemas.frames import Frame
from schemas.hosts import OperationStatus
from schemas.ids import new_id
from schemas.vms import VmSpec
from tests.support.agents import Client, agent
from tests.support.hypervisors import REAL_DRIVERS, Lab, open_lab
from tests.support.nats import bus_with_streams
from tests.support.samples import assert_exact, assert_no_hole, has_final, samples_of

pytestmark = [pytest.mark.hypervisor, pytest.mark.timeout(90)]

SPEC = VmSpec(
    image="tiny",
    memory_mib=64,
    disk_mib=8,
    kernel_args={"blkw": "3072", "blkr": "1536", "tx": "1000"},
)
SENT_BYTES = 1_000_000


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with open_lab() as opened:
        yield opened


@pytest.mark.parametrize("name", REAL_DRIVERS)
async def test_bytes_and_time_are_exact_over_a_crash_of_the_agent(lab: Lab, name: str) -> None:
    """3 MiB written, 1.5 MiB read, 1000 frames sent: event, status and last frame say just that."""
    lab.require(name)
    settings = {"driver": name}
    if name == "firecracker" and lab.firecracker is not None:
        settings["firecracker"] = str(lab.firecracker)
    with tempfile.TemporaryDirectory(prefix="dsh-") as directory:
        folder = Path(directory)
        async with (
            bus_with_streams(folder / "nats") as (server, bus),
            agent(folder / "a", server.url, lab.image.kernel, **settings) as process,
        ):
            client = Client(bus)
            vm_id = new_id()
            first_run = (await client.host()).run_id
            await client.do(CreateVm, vm_id, spec=SPEC)
            booted = await client.do(BootVm, vm_id)
            assert booted.status is OperationStatus.SUCCEEDED, booted

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
