"""What a real agent does about a simulator that goes wrong, while its other VMs go on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest

from schemas.commands import BootVm, CreateVm, DeleteVm, PauseVm, ResumeVm, ShutdownVm
from schemas.errors import ErrorCode
from schemas.events import VmStopped
from schemas.frames import Frame
from schemas.hosts import OperationStatus
from schemas.ids import new_id
from schemas.vms import Counters, VmSpec, VmState
from tests.support.agents import AgentProcess, Client, agent
from tests.support.faults import ENDINGS
from tests.support.hypervisors import processes_in
from tests.support.nats import bus_with_streams
from tests.support.samples import Sample, assert_exact, assert_no_hole, has_final, samples_of
from vm_agent.drivers.metrics_lines import METRICS
from vm_agent.drivers.paths import API_SOCKET
from vm_agent.drivers.unix_http import Answer, UnixHttpConnection
from vm_agent.process import is_alive
from vm_agent.simulator.load import Load

pytestmark = pytest.mark.timeout(90)

COMPLAINTS = {
    "hang": "did not answer PATCH /vm within 2 s",
    "lose_socket": "PATCH /vm failed: ",
    "refuse": "refused PATCH /vm: The microVM refuses every request.",
}
"""Faults after which a machine obeys no more, and what the error of a command says then."""
END_S = 12
"""Asking a machine that hangs takes 2 s, saving its counters 2 s, and this host may be busy."""


@dataclass
class Stage:
    """An agent with the simulator, and a VM on it that nothing is wrong with."""

    agent: AgentProcess
    client: Client
    healthy: UUID

    async def vm(self, **kernel_args: str) -> UUID:
        """A VM that has been created and booted."""
        return await boot(self.client, **kernel_args)

    async def ask(self, vm_id: UUID, method: str, path: str, body: object = None) -> Answer:
        """Talk to a VM's machine past the agent, a second at most."""
        (run_dir,) = (self.agent.data_dir / "run").glob(f"{vm_id.hex}-*")
        api = UnixHttpConnection(next(run_dir.rglob(API_SOCKET), run_dir / API_SOCKET))
        try:
            async with asyncio.timeout(1):
                return await api.request(method, path, json.dumps(body).encode() if body else b"")
        finally:
            await api.close()

    async def until_struck(self, vm_id: UUID, kind: str) -> None:
        """Wait until a machine that lives on shows its fault."""
        with suppress(TimeoutError, OSError):
            while True:
                if kind == "fill_disk":
                    flush = {"action_type": "FlushMetrics"}
                    answer = await self.ask(vm_id, "PUT", "/actions", flush)
                else:
                    answer = await self.ask(vm_id, "GET", "/")
                if answer.status >= 400:
                    return
                await asyncio.sleep(0.02)

    async def assert_healthy_obeys(self) -> None:
        """The other VM does what it is told, and soon."""
        for kind in (PauseVm, ResumeVm):
            async with asyncio.timeout(2):
                done = await self.client.do(kind, self.healthy)
            assert (done.status, done.error) == (OperationStatus.SUCCEEDED, None)

    async def end(self, vm_id: UUID, *, shut_down: bool) -> None:
        """Shut a VM down and delete it, or delete it as it is; all of it soon, and all of it."""
        vmm = self.agent.vmm_of(vm_id)
        async with asyncio.timeout(END_S):
            if shut_down:
                done = await self.client.do(ShutdownVm, vm_id, grace_s=1.0)
                assert (done.status, done.state) == (OperationStatus.SUCCEEDED, VmState.STOPPED)
            done = await self.client.do(DeleteVm, vm_id)
            assert (done.status, done.state) == (OperationStatus.SUCCEEDED, VmState.DELETED)
        assert not is_alive(*vmm)
        self.assert_nothing_left(vm_id)

    def assert_nothing_left(self, *vm_ids: UUID) -> None:
        """No process and no file of these VMs, but the agent's record that they are deleted."""
        for vm_id in vm_ids:
            names = (vm_id.hex, str(vm_id))
            left = [
                path
                for path in self.agent.data_dir.rglob("*")
                if any(name in path.name for name in names) and path.parent.name != "vms"
            ]
            assert left == []
            run = self.agent.data_dir / "run"
            assert not [pid for pid in processes_in(run) if vm_id.hex in _place(pid)]

    async def assert_metered(self, *vm_ids: UUID) -> list[Frame]:
        """Every tick of every VM is there; what was reported is neither undone nor invented."""
        for vm_id in vm_ids:
            await self.client.frames_until(has_final(vm_id))
        frames = await self.client.frames()
        assert_no_hole(frames)
        stops = {e.vm_id: e for e in await self.client.events() if isinstance(e, VmStopped)}
        for vm_id in vm_ids:
            samples = samples_of(frames, vm_id)
            assert_exact(samples)
            assert_in_every_frame(frames, samples)
            final = samples[-1].counters
            assert stops[vm_id].final_counters == final
            assert_true(vm_id, final)
        healthy = samples_of(frames, self.healthy)
        assert_in_every_frame(frames, healthy)
        assert_true(self.healthy, healthy[-1].counters)
        return frames


def _place(pid: int) -> str:
    with suppress(OSError):
        return str(Path(f"/proc/{pid}/cwd").readlink())
    return ""


def assert_in_every_frame(frames: list[Frame], samples: list[Sample]) -> None:
    """A VM has a sample in each tick of the host between its first and its last."""
    first, last = samples[0].tick_ms, samples[-1].tick_ms
    ticks = sorted({frame.tick_ms for frame in frames if first <= frame.tick_ms <= last})
    assert [sample.tick_ms for sample in samples] == ticks


def used(vm_id: UUID, uptime_ms: int) -> tuple[int, ...]:
    """CPU time and disk bytes that a guest has used in its first milliseconds."""
    return Load(str(vm_id), vcpus=1, disk=True, nic=False).at(uptime_ms)[:3]


def counted(counters: Counters) -> tuple[int, ...]:
    """The same of what was metered."""
    return counters.cpu_ns, counters.disk_read_bytes, counters.disk_write_bytes


def assert_not_above(counters: tuple[int, ...], most: tuple[int, ...]) -> None:
    """No counter is greater than another one."""
    assert all(one <= other for one, other in zip(counters, most, strict=True)), (counters, most)


def assert_true(vm_id: UUID, counters: Counters) -> None:
    """Nothing is invented: a guest starts after its VMM, so it has used less than this."""
    assert_not_above(counted(counters), used(vm_id, counters.uptime_ms))
    assert counters.mem_kib_ms == 64 * 1024 * counters.uptime_ms
    assert (counters.net_rx_bytes, counters.net_tx_bytes) == (0, 0)


async def boot(client: Client, **kernel_args: str) -> UUID:
    """A VM that has been created and booted."""
    vm_id = new_id()
    spec = VmSpec(image="tiny", memory_mib=64, disk_mib=4, network=False, kernel_args=kernel_args)
    created = await client.do(CreateVm, vm_id, spec=spec)
    assert created.status is OperationStatus.SUCCEEDED, created
    booted = await client.do(BootVm, vm_id)
    assert booted.status is OperationStatus.SUCCEEDED, booted
    return vm_id


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"\x7fELF: the simulator boots anything")
    async with (
        bus_with_streams(tmp_path / "nats") as (server, bus),
        agent(tmp_path / "agent", server.url, kernel, driver="simulator") as process,
    ):
        client = Client(bus)
        yield Stage(process, client, await boot(client))
    assert not processes_in(tmp_path)


@pytest.mark.parametrize("kind", ENDINGS)
async def test_a_vmm_that_ends_is_an_event_within_a_second(stage: Stage, kind: str) -> None:
    """With its reason and final counters; the VM can be booted and deleted, and others go on."""
    vm_id = await stage.vm(fault=kind, fault_after_ms="700")
    vmm = stage.agent.vmm_of(vm_id)
    await stage.assert_healthy_obeys()
    async with asyncio.timeout(5):
        while is_alive(*vmm):
            await asyncio.sleep(0.01)
    async with asyncio.timeout(1):
        while not [e for e in await stage.client.events() if isinstance(e, VmStopped)]:
            await asyncio.sleep(0.01)
    await stage.assert_healthy_obeys()
    (event,) = [e for e in await stage.client.events() if isinstance(e, VmStopped)]
    assert event.vm_id == vm_id
    assert event.reason in ENDINGS[kind][1]
    status = await stage.client.status(vm_id)
    assert status is not None
    assert (status.state, status.exit_reason) == (VmState.STOPPED, event.reason)
    assert event.final_counters.uptime_ms >= 700
    assert event.final_counters.cpu_ns > 0
    await stage.assert_metered(vm_id)
    again = await stage.client.do(BootVm, vm_id)
    assert (again.status, again.state) == (OperationStatus.SUCCEEDED, VmState.RUNNING)
    await stage.end(vm_id, shut_down=False)


@pytest.mark.parametrize("kind", COMPLAINTS)
async def test_a_vmm_that_does_not_obey_is_ended_without_harm_to_others(
    stage: Stage, kind: str
) -> None:
    """Commands fail with the reason; shutdown and deletion work, and leave nothing."""
    client = stage.client
    told = {"fault": kind, "fault_after_ms": "500"}
    vm_ids = [await stage.vm(**told) for _ in range(2)]
    for vm_id in vm_ids:
        await stage.until_struck(vm_id, kind)
    paused = await client.send(PauseVm, vm_ids[0])
    await stage.assert_healthy_obeys()
    async with asyncio.timeout(5):
        done = await client.result(paused.command_id)
    assert done.status is OperationStatus.FAILED
    assert done.error is not None
    assert done.error.code is ErrorCode.HYPERVISOR_FAILED
    assert COMPLAINTS[kind] in done.error.message
    status = await client.status(vm_ids[0])
    assert status is not None
    assert status.state is VmState.RUNNING
    async with asyncio.TaskGroup() as group:
        group.create_task(stage.end(vm_ids[0], shut_down=True), name="shutdown")
        group.create_task(stage.end(vm_ids[1], shut_down=False), name="delete")
        group.create_task(stage.assert_healthy_obeys(), name="healthy")
    await stage.assert_metered(*vm_ids)
    if kind != "refuse":
        assert '"event": "vmm.silent"' in stage.agent.log()


async def test_a_vmm_that_hung_for_a_while_goes_on(stage: Stage) -> None:
    """Nothing was lost: its machine went on counting, and it obeys again."""
    vm_id = await stage.vm(fault="hang", fault_after_ms="300", fault_for_ms="1500")
    await stage.until_struck(vm_id, "hang")
    async with asyncio.timeout(10):
        while (await stage.client.do(PauseVm, vm_id)).status is not OperationStatus.SUCCEEDED:
            pass
    stopped = await stage.client.do(ShutdownVm, vm_id, grace_s=5.0)
    assert (stopped.status, stopped.state) == (OperationStatus.SUCCEEDED, VmState.STOPPED)
    frames = await stage.assert_metered(vm_id)
    final = samples_of(frames, vm_id)[-1].counters
    assert_not_above(used(vm_id, 300 + 1500), counted(final))


async def test_a_vmm_whose_start_is_not_answered_is_a_boot_that_failed(stage: Stage) -> None:
    """The boot says so, no process is left of it, and the VM is stopped."""
    client = stage.client
    vm_id = new_id()
    spec = VmSpec(image="tiny", memory_mib=64, network=False, kernel_args={"fault": "hang"})
    await client.do(CreateVm, vm_id, spec=spec)
    async with asyncio.timeout(END_S):
        booted = await client.do(BootVm, vm_id)
    assert (booted.status, booted.state) == (OperationStatus.FAILED, VmState.STOPPED)
    assert booted.error is not None
    assert "did not answer PUT /actions" in booted.error.message
    await stage.assert_healthy_obeys()
    assert not list((stage.agent.data_dir / "run").glob(f"{vm_id.hex}-*"))
    assert (await client.do(DeleteVm, vm_id)).state is VmState.DELETED
    stage.assert_nothing_left(vm_id)


async def test_a_fault_that_does_not_exist_is_refused(stage: Stage) -> None:
    """As a boot that failed, in words that say what there is."""
    vm_id = new_id()
    spec = VmSpec(image="tiny", memory_mib=64, network=False, kernel_args={"fault": "meltdown"})
    await stage.client.do(CreateVm, vm_id, spec=spec)
    booted = await stage.client.do(BootVm, vm_id)
    assert booted.error is not None
    assert "no fault `meltdown`, expected one of crash, " in booted.error.message


@pytest.mark.parametrize("shut_down", [True, False])
async def test_a_full_disk_costs_counters_and_never_adds_any(stage: Stage, shut_down: bool) -> None:
    """The VM still obeys; what could not be written is missing in its final counters."""
    vm_id = await stage.vm(fault="fill_disk", fault_after_ms="500")
    await stage.until_struck(vm_id, "fill_disk")
    for kind in (PauseVm, ResumeVm):
        assert (await stage.client.do(kind, vm_id)).status is OperationStatus.SUCCEEDED
    await stage.assert_healthy_obeys()
    await stage.end(vm_id, shut_down=shut_down)
    frames = await stage.assert_metered(vm_id)
    final = samples_of(frames, vm_id)[-1].counters
    assert final.cpu_ns > 0
    # The last line that was written is from before the fault.
    assert_not_above(counted(final), used(vm_id, 500))


async def test_a_disk_with_space_again_shows_what_was_lost(stage: Stage) -> None:
    """A torn line is skipped and logged with its size; counting goes on behind it."""
    vm_id = await stage.vm(fault="fill_disk", fault_after_ms="500", fault_for_ms="1000")
    await stage.until_struck(vm_id, "fill_disk")
    async with asyncio.timeout(10):
        while '"event": "metrics.skipped"' not in stage.agent.log():
            await asyncio.sleep(0.02)
    done = await stage.client.do(ShutdownVm, vm_id, grace_s=5.0)
    assert (done.status, done.state) == (OperationStatus.SUCCEEDED, VmState.STOPPED)
    frames = await stage.assert_metered(vm_id)
    final = samples_of(frames, vm_id)[-1].counters
    # Lost is what was used from the last line before to the last that was refused: of one second,
    # the first half at least.
    before, within, whole = (used(vm_id, at_ms) for at_ms in (500, 1000, final.uptime_ms))
    most = tuple(a - (b - c) for a, b, c in zip(whole, within, before, strict=True))
    assert_not_above(counted(final), most)
    assert final.cpu_ns > before[0]
    (skipped,) = [
        json.loads(line) for line in stage.agent.log().splitlines() if "metrics.skipped" in line
    ]
    assert skipped["skipped_bytes"] > 0
    assert METRICS in skipped["path"]
