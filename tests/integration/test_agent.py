"""A real agent process with the simulator on a real nats-server, killed at bad moments."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest

from runtime.reading import read_stream
from schemas.audit import AuditEntry, decode_audit_entry, is_of_host
from schemas.codec import encode
from schemas.commands import (
    BootVm,
    CreateVm,
    DeleteVm,
    PauseVm,
    RebootVm,
    ResumeVm,
    ShutdownVm,
    SnapshotVm,
)
from schemas.errors import ErrorCode
from schemas.events import VmStarted, VmStopped, event_type
from schemas.frames import SampleFlag
from schemas.hosts import OperationStatus
from schemas.ids import new_id
from schemas.subjects import HOST_AUDIT, vm_command
from schemas.vms import ExitReason, VmSpec, VmState
from tests.support.agents import HOST, AgentProcess, Client, agent
from tests.support.nats import NatsServer, bus_with_streams
from tests.support.samples import assert_exact, assert_no_hole, has_final, samples_of
from vm_agent.network.taps import list_owned, owner_of
from vm_agent.process import is_alive

pytestmark = pytest.mark.timeout(60)

SPEC = VmSpec(image="tiny", memory_mib=64, disk_mib=4)


@dataclass
class Stage:
    """A bus, an agent on it, and somebody who sends commands."""

    server: NatsServer
    agent: AgentProcess
    client: Client

    async def running_vm(self) -> UUID:
        """A VM that has been created and booted."""
        vm_id = new_id()
        created = await self.client.do(CreateVm, vm_id, spec=SPEC)
        assert created.status is OperationStatus.SUCCEEDED, created
        booted = await self.client.do(BootVm, vm_id)
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
        yield Stage(server, process, Client(bus))


async def test_a_vm_lives_through_all_verbs_and_is_metered_exactly(stage: Stage) -> None:
    """Events, status and the final sample agree to the unit, for both incarnations."""
    client = stage.client
    vm_id = await stage.running_vm()
    await client.frames_until(lambda fs: len(samples_of(fs, vm_id)) >= 5)
    for kind in (PauseVm, ResumeVm, RebootVm):
        done = await client.do(kind, vm_id)
        assert (done.status, done.error) == (OperationStatus.SUCCEEDED, None)
    await client.frames_until(lambda fs: any(s.incarnation == 2 for s in samples_of(fs, vm_id)))
    assert (await client.do(ShutdownVm, vm_id)).state is VmState.STOPPED
    status = await client.status(vm_id)
    assert status is not None
    assert (status.state, status.incarnation, status.simulated) == (VmState.STOPPED, 2, True)
    assert (await client.do(DeleteVm, vm_id)).state is VmState.DELETED

    frames = await client.frames_until(has_final(vm_id, 2))
    assert_no_hole(frames)
    events = await client.events()
    assert [event_type(event) for event in events] == [
        "vm_created", "vm_started", "vm_paused", "vm_resumed",
        "vm_stopped", "vm_started", "vm_stopped", "vm_deleted",
    ]  # fmt: skip
    stopped = [event for event in events if isinstance(event, VmStopped)]
    for event in stopped:
        samples = [s for s in samples_of(frames, vm_id) if s.incarnation == event.incarnation]
        assert_exact(samples)
        assert samples[-1].counters == event.final_counters
        assert event.reason is ExitReason.REQUESTED
        assert event.final_counters.uptime_ms > 0
    assert status.final_counters == stopped[-1].final_counters
    assert all(s.flags & SampleFlag.SIMULATED for s in samples_of(frames, vm_id))


async def test_the_agent_goes_first_and_its_vmms_do_not(stage: Stage) -> None:
    """Its own thread is a real-time one, or it says why not; a VMM is always ordinary."""
    vm_id = await stage.running_vm()
    pid, _ = stage.agent.vmm_of(vm_id)
    assert os.sched_getscheduler(pid) == os.SCHED_OTHER
    assert os.getpriority(os.PRIO_PROCESS, pid) == 0
    refused = "realtime.unavailable" in stage.agent.log()
    policy = os.SCHED_OTHER if refused else os.SCHED_RR | os.SCHED_RESET_ON_FORK
    assert os.sched_getscheduler(stage.agent.pid) == policy


async def test_a_redelivered_command_answers_the_same_and_does_nothing_twice(
    stage: Stage,
) -> None:
    """Copies of a finished command, under other message ids, change nothing."""
    client = stage.client
    vm_id = await stage.running_vm()
    boot = await client.send(RebootVm, vm_id, grace_s=2.0)
    first = await client.result(boot.command_id)
    for copy in range(3):
        await client.publish(boot, msg_id=f"copy-{copy}")
    # Commands of one VM are carried out in order, so this one comes after the copies.
    await client.do(PauseVm, vm_id)
    assert await client.result(boot.command_id) == first
    started = [e for e in await client.events() if isinstance(e, VmStarted)]
    assert [e.incarnation for e in started] == [1, 2]


async def test_what_cannot_be_done_is_refused_and_changes_nothing(stage: Stage) -> None:
    """Each refusal has its code; the VM stays as it was."""
    client = stage.client
    vm_id = await stage.running_vm()

    async def code(kind: type, vm: UUID = vm_id, **fields: Any) -> ErrorCode:
        operation = await client.do(kind, vm, **fields)
        assert operation.status is OperationStatus.FAILED
        assert operation.error is not None
        return operation.error.code

    before = await client.status(vm_id)
    assert await code(BootVm) is ErrorCode.ILLEGAL_TRANSITION
    assert await code(ResumeVm) is ErrorCode.ILLEGAL_TRANSITION
    assert await code(CreateVm, spec=SPEC) is ErrorCode.CONFLICT
    assert await code(SnapshotVm, snapshot_id=new_id()) is ErrorCode.UNSUPPORTED
    assert await code(PauseVm, vm=new_id()) is ErrorCode.NOT_FOUND
    assert await code(PauseVm, customer_id="globex") is ErrorCode.NOT_FOUND
    past = (await client.host()).heartbeat_at.replace(year=2020)
    assert await code(PauseVm, deadline=past) is ErrorCode.DEADLINE_EXCEEDED
    unknown = msgspec.structs.replace(SPEC, image="nothing")
    assert await code(CreateVm, vm=new_id(), spec=unknown) is ErrorCode.UNKNOWN_IMAGE
    huge = msgspec.structs.replace(SPEC, memory_mib=1_048_576)
    assert await code(CreateVm, vm=new_id(), spec=huge) is ErrorCode.NO_CAPACITY
    odd = msgspec.structs.replace(SPEC, kernel_args={"init": "x"})
    assert await code(CreateVm, vm=new_id(), spec=odd) is ErrorCode.BAD_REQUEST
    assert await client.status(vm_id) == before


async def test_malformed_commands_are_set_aside_and_the_rest_goes_on(stage: Stage) -> None:
    """Garbage, a subject that disagrees and a wrong verb leave the stream, and are audited."""
    client = stage.client
    await client.host()
    js = client.bus.js
    vm_id = new_id()
    command = BootVm(
        command_id=new_id(), customer_id="acme", vm_id=vm_id, host_id=HOST,
        issued_at=(at := (await client.host()).heartbeat_at), deadline=at,
    )  # fmt: skip
    await js.publish(f"vm.cmd.{HOST}.{vm_id}.boot", b"\xff{")
    await js.publish(f"vm.cmd.{HOST}.{vm_id}.boot", b'{"type":"BootVm"}')
    await js.publish(f"vm.cmd.{HOST}.{vm_id}.explode", b"{}")
    await js.publish(f"vm.cmd.{HOST}.{new_id()}.boot", encode(command))
    await js.publish(vm_command(command).replace("boot", "pause"), encode(command))
    await stage.running_vm()
    while (await js.stream_info("VM_COMMANDS")).state.messages:
        await asyncio.sleep(0.02)
    entries: list[AuditEntry] = []
    while len(entries) < 5:
        entries = [decode_audit_entry(m.data) for m in await read_stream(client.bus, HOST_AUDIT)]
    assert [entry.reason for entry in entries] == [
        "not_json", "invalid_message", "bad_subject", "subject_mismatch", "subject_mismatch",
    ]  # fmt: skip
    assert all(is_of_host(entry, HOST) for entry in entries)


async def test_an_agent_that_is_killed_finds_its_vm_and_meters_on(stage: Stage) -> None:
    """Same VMM, same incarnation, counters and ticks that only grow, over two runs."""
    client = stage.client
    vm_id = await stage.running_vm()
    first_run = (await client.host()).run_id
    await client.frames_until(lambda fs: len(samples_of(fs, vm_id)) >= 5)
    vmm = stage.agent.vmm_of(vm_id)
    await stage.agent.kill()
    assert is_alive(*vmm)
    await stage.agent.start()
    await client.host(other_than=first_run)
    assert stage.agent.vmm_of(vm_id) == vmm
    await client.frames_until(
        lambda fs: (
            len({f.run_id for f in fs if f.rows}) == 2
            and len([f for f in fs if f.run_id != first_run]) > 5
        )
    )
    assert (await client.do(ShutdownVm, vm_id)).status is OperationStatus.SUCCEEDED
    frames = await client.frames_until(has_final(vm_id))
    assert_no_hole(frames)
    samples = samples_of(frames, vm_id)
    assert {s.incarnation for s in samples} == {1}
    assert_exact(samples)
    (stopped,) = [e for e in await client.events() if isinstance(e, VmStopped)]
    assert stopped.final_counters == samples[-1].counters
    spent_ms = samples[-1].tick_ms - samples[0].tick_ms
    assert abs(stopped.final_counters.uptime_ms - spent_ms) < 1500


async def test_a_command_that_a_crash_interrupts_is_finished_by_the_next_run(
    stage: Stage,
) -> None:
    """A shutdown that waits for its guest is delivered again and comes to its end."""
    client = stage.client
    vm_id = await stage.running_vm()
    pid, _ = stage.agent.vmm_of(vm_id)
    first_run = (await client.host()).run_id
    # A VMM that stands still does not hear the request, so the command stays open.
    os.kill(pid, signal.SIGSTOP)
    command = await client.send(ShutdownVm, vm_id, grace_s=20.0)
    while (await client.status(vm_id)).state is not VmState.STOPPING:  # type: ignore[union-attr]
        await asyncio.sleep(0.02)
    await stage.agent.kill()
    os.kill(pid, signal.SIGCONT)
    await stage.agent.start()
    await client.host(other_than=first_run)
    done = await client.result(command.command_id)
    assert (done.status, done.state) == (OperationStatus.SUCCEEDED, VmState.STOPPED)
    stopped = [e for e in await client.events() if isinstance(e, VmStopped)]
    assert len(stopped) == 1
    samples = samples_of(await client.frames_until(has_final(vm_id)), vm_id)
    assert samples[-1].counters == stopped[0].final_counters


async def test_a_vmm_that_dies_is_noticed_within_a_second(stage: Stage) -> None:
    """SIGKILL from outside becomes an event with its reason and exact final counters."""
    client = stage.client
    vm_id = await stage.running_vm()
    await client.frames_until(lambda fs: len(samples_of(fs, vm_id)) >= 3)
    os.kill(stage.agent.vmm_of(vm_id)[0], signal.SIGKILL)
    async with asyncio.timeout(1):
        while (status := await client.status(vm_id)) is None or status.state is VmState.RUNNING:
            await asyncio.sleep(0.01)
    assert (status.state, status.exit_reason) == (VmState.STOPPED, ExitReason.KILLED)
    samples = samples_of(await client.frames_until(has_final(vm_id)), vm_id)
    assert_exact(samples)
    assert samples[-1].counters == status.final_counters
    again = await client.do(BootVm, vm_id)
    assert (again.status, again.state) == (OperationStatus.SUCCEEDED, VmState.RUNNING)


async def test_a_vmm_that_dies_unseen_is_settled_with_what_was_seen(stage: Stage) -> None:
    """Agent and VMM both killed: the next run stops the VM and sends its final sample."""
    client = stage.client
    vm_id = await stage.running_vm()
    first_run = (await client.host()).run_id
    await client.frames_until(lambda fs: len(samples_of(fs, vm_id)) >= 5)
    pid, _ = stage.agent.vmm_of(vm_id)
    await stage.agent.kill()
    os.kill(pid, signal.SIGKILL)
    await stage.agent.start()
    await client.host(other_than=first_run)
    samples = samples_of(await client.frames_until(has_final(vm_id)), vm_id)
    assert_exact(samples)
    status = await client.status(vm_id)
    assert status is not None
    assert (status.state, status.final_counters) == (VmState.STOPPED, samples[-1].counters)
    assert samples[-1].counters.uptime_ms >= samples[-2].counters.uptime_ms


async def test_a_nats_server_that_dies_costs_no_tick(stage: Stage) -> None:
    """Killed for longer than memory holds and started again: no hole in any sequence."""
    client = stage.client
    vm_id = await stage.running_vm()
    await client.frames_until(lambda fs: len(samples_of(fs, vm_id)) >= 5)
    epoch = client.bus.epoch
    await stage.server.kill()
    spool = stage.agent.data_dir / "spool"
    while len(list(spool.glob("*.frames"))) < 2:
        await asyncio.sleep(0.05)
    await stage.server.start()
    await client.bus.reconnected_after(epoch)
    assert (await client.do(ShutdownVm, vm_id)).status is OperationStatus.SUCCEEDED
    frames = await client.frames_until(has_final(vm_id))
    while list(spool.glob("*.frames")):
        await asyncio.sleep(0.05)
    frames = await client.frames()
    assert_no_hole(frames)
    assert_exact(samples_of(frames, vm_id))
    by_seq = sorted(frames, key=lambda frame: frame.seq)
    ticks = [frame.tick_ms for frame in by_seq]
    missed = sum(frame.missed_ticks for frame in by_seq)
    assert ticks[-1] - ticks[0] == 100 * (len(ticks) - 1 + missed)
    # In order, but for a batch that was tried twice.
    assert all(abs(frame.seq - place) < 32 for place, frame in enumerate(frames))
    assert all(frame.refresh_ms >= 100 for frame in frames)


async def test_frames_that_a_stopped_agent_could_not_send_come_with_the_next_run(
    stage: Stage,
) -> None:
    """SIGTERM while NATS is away: exit 0, VM running; later every frame under its old id."""
    client = stage.client
    vm_id = await stage.running_vm()
    first_run = (await client.host()).run_id
    vmm = stage.agent.vmm_of(vm_id)
    epoch = client.bus.epoch
    await stage.server.kill()
    while "bus.disconnected" not in stage.agent.log():
        await asyncio.sleep(0.05)
    code = await stage.agent.stop()
    assert code == 0, stage.agent.log()[-3000:]
    assert is_alive(*vmm)
    left = list((stage.agent.data_dir / "spool").glob("*.frames"))
    assert left
    await stage.server.start()
    await client.bus.reconnected_after(epoch)
    await stage.agent.start()
    await client.host(other_than=first_run)
    await client.frames_until(lambda fs: any(f.run_id != first_run and f.rows for f in fs))
    frames = await client.frames()
    assert_no_hole(frames)
    old = [frame for frame in frames if frame.run_id == first_run]
    new = [frame for frame in frames if frame.run_id != first_run]
    assert max(f.tick_ms for f in old) < min(f.tick_ms for f in new)
    assert not list((stage.agent.data_dir / "spool").glob("*.frames"))


async def test_a_second_agent_on_the_same_directory_is_refused(stage: Stage) -> None:
    """Two agents would meter and command the same VMs."""
    await stage.client.host()
    other = AgentProcess(stage.agent.data_dir, stage.server.url, settings={"driver": "simulator"})
    await other.start()
    assert other._process is not None
    assert await other._process.wait() == 1
    assert "another agent works here" in other.log()


async def test_the_reaper_leaves_no_vmm_and_no_namespace(stage: Stage) -> None:
    """After the agent's death it ends what is recorded, and a second time finds nothing."""
    vm_ids = [await stage.running_vm() for _ in range(2)]
    vmms = [stage.agent.vmm_of(vm_id) for vm_id in vm_ids]
    await stage.agent.kill()
    said = await stage.agent.reap()
    for vm_id, vmm in zip(vm_ids, vmms, strict=True):
        assert not is_alive(*vmm)
        assert str(vm_id) in said
    assert not {owner_of(nic)[0] for nic in list_owned()} & set(vm_ids)
    assert "nothing left" in await stage.agent.reap()
