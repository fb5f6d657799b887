"""The whole agent on a host in memory: failures, slow VMs, the orderly end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest

from runtime.errors import TransientError
from schemas.commands import BootVm, CreateVm, DeleteVm, RebootVm, ShutdownVm
from schemas.errors import ErrorCode
from schemas.events import VmFailed, VmStopped
from schemas.frames import SampleFlag, decode_frame
from schemas.hosts import OperationStatus, Resources
from schemas.ids import new_id
from schemas.vms import ExitReason, VmState
from tests.support.whole_agent import SPEC, Letter, Rig, whole_agent

LIMIT_S = 20

pytestmark = pytest.mark.timeout(LIMIT_S)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with whole_agent(Rig(tmp_path)) as made:
        yield made


async def test_a_boot_that_fails_leaves_a_vm_that_can_be_booted(rig: Rig) -> None:
    """Stopped, with the reason; whatever the step that failed, nothing is left on the host."""
    vm_id = new_id()
    await rig.do(CreateVm, vm_id, spec=SPEC)
    for verb in ("create", "boot"):
        rig.driver.fails = {verb}
        operation = await rig.do(BootVm, vm_id)
        assert operation.error is not None
        assert (operation.error.code, operation.state) == (
            ErrorCode.HYPERVISOR_FAILED, VmState.STOPPED,
        )  # fmt: skip
        assert rig.desk.statuses[-1].last_error == operation.error
        assert not rig.kernel.living()
        assert not rig.kernel.nics
    rig.driver.fails = set()
    assert (await rig.do(BootVm, vm_id)).state is VmState.RUNNING
    assert rig.desk.statuses[-1].incarnation == 3
    assert rig.desk.statuses[-1].last_error is None


async def test_a_create_that_fails_ends_in_failed_and_can_be_deleted(rig: Rig) -> None:
    """A disk that cannot be made is told as an event, too."""
    disks = rig.folder / "disks"
    disks.write_text("in the way")
    vm_id = new_id()
    operation = await rig.do(CreateVm, vm_id, spec=SPEC)
    assert (operation.status, operation.state) == (OperationStatus.FAILED, VmState.FAILED)
    assert [type(e) for e in rig.desk.events.values()] == [VmFailed]
    disks.unlink()
    assert (await rig.do(DeleteVm, vm_id)).state is VmState.DELETED


async def test_a_slow_vm_holds_up_no_other(rig: Rig) -> None:
    """While one boot hangs, another VM is created, booted, stopped and deleted."""
    slow = new_id()
    await rig.do(CreateVm, slow, spec=SPEC)
    rig.driver.hangs = {"boot"}
    letter = rig.post(BootVm, slow)
    await rig.until(lambda: rig.driver.hanging)
    rig.driver.hangs = set()
    quick = await rig.running_vm()
    assert (await rig.do(ShutdownVm, quick)).state is VmState.STOPPED
    assert (await rig.do(DeleteVm, quick)).state is VmState.DELETED
    assert not letter.answered.is_set()
    rig.driver.release.set()
    await letter.answered.wait()


async def test_a_vmm_that_hangs_is_sampled_all_the_same(rig: Rig) -> None:
    """Its device counters stand still; kernel counters, ticks and other VMs go on."""
    vm_id = await rig.running_vm()
    rig.driver.hangs = {"counters"}
    seen = len(rig.flags_of(vm_id))
    await rig.until(lambda: len(rig.flags_of(vm_id)) >= seen + 5)
    seqs = [decode_frame(frame.payload).seq for frame in rig.frames]
    assert seqs == list(range(len(seqs)))


async def test_a_guest_that_does_not_obey_is_ended_after_its_grace(rig: Rig) -> None:
    """Killed is the reason then; a guest that was given no time is not asked."""
    rig.driver.obeys = False
    for grace_s in (0.05, 0.0):
        vm_id = await rig.running_vm()
        operation = await rig.do(ShutdownVm, vm_id, grace_s=grace_s)
        assert operation.state is VmState.STOPPED
        assert rig.desk.statuses[-1].exit_reason is ExitReason.KILLED
    rig.driver.obeys = True
    vm_id = await rig.running_vm()
    await rig.do(ShutdownVm, vm_id)
    assert rig.desk.statuses[-1].exit_reason is ExitReason.REQUESTED


async def test_a_vmm_whose_driver_fails_to_kill_is_killed_all_the_same(rig: Rig) -> None:
    """SIGKILL needs no cooperation; the counters are those read last."""
    vm_id = await rig.running_vm()
    rig.driver.fails = {"kill", "counters", "destroy"}
    assert (await rig.do(DeleteVm, vm_id)).state is VmState.DELETED
    assert not rig.kernel.living()


async def test_a_reboot_is_two_incarnations_with_their_own_samples(rig: Rig) -> None:
    """Final sample of the first before the baseline of the second; never both in one frame."""
    vm_id = await rig.running_vm()
    await rig.until(lambda: len(rig.flags_of(vm_id)) >= 2)
    assert (await rig.do(RebootVm, vm_id)).state is VmState.RUNNING
    await rig.until(lambda: rig.flags_of(vm_id).count(SampleFlag.BASELINE) == 2)
    marked = [flag for flag in rig.flags_of(vm_id) if flag]
    assert marked == [SampleFlag.BASELINE, SampleFlag.FINAL, SampleFlag.BASELINE]


async def test_malformed_commands_are_terminated(rig: Rig) -> None:
    """Each is answered with term, and the next good one is carried out."""
    vm_id = new_id()
    letters = [
        rig.letter(f"vm.cmd.h1.{vm_id}.boot", b"\x00"),
        rig.letter(f"vm.cmd.h1.{vm_id}.boot", b"{}"),
        rig.letter("vm.cmd.h1.x.boot", b"{}"),
    ]
    other = rig.post(BootVm, vm_id, host_id="h2")
    for letter in [*letters, other]:
        await letter.answered.wait()
        assert letter.answers == ["term"]
    await rig.running_vm()


async def test_the_end_leaves_vms_running_and_open_commands_to_the_next_run(
    tmp_path: Path,
) -> None:
    """A command that does not finish in time is given back and finished by the next run."""
    rig = Rig(tmp_path)
    async with asyncio.timeout(LIMIT_S):
        async with asyncio.TaskGroup() as group:
            group.create_task(rig.run(), name="agent")
            await rig.started.wait()
            idle, busy = await rig.running_vm(), await rig.running_vm()
            rig.driver.hangs = {"shutdown"}
            letter = rig.post(ShutdownVm, busy, grace_s=1.0)
            await rig.until(lambda: rig.desk.statuses[-1].state is VmState.STOPPING)
            rig.stop.set()
        assert letter.answers[-1] == "nak"
        assert len(rig.kernel.living()) == 2
        rig.driver.hangs = set()
        rig.stop.clear()
        rig.started.clear()
        async with asyncio.TaskGroup() as group:
            group.create_task(rig.run(), name="agent")
            await rig.started.wait()
            again = Letter(letter.subject, letter.data)
            rig.letters.put_nowait(again)
            await again.answered.wait()
            assert again.answers == ["ack"]
            rig.stop.set()
    assert [m.vmm.vm_id for m in rig.kernel.living()] == [idle]
    stopped = [e for e in rig.desk.events.values() if isinstance(e, VmStopped)]
    assert [e.vm_id for e in stopped] == [busy]
    # The final sample went out before the end.
    assert rig.flags_of(busy)[-1] == SampleFlag.FINAL


async def test_the_heartbeat_tells_what_is_left(rig: Rig) -> None:
    """Reservations count, a deleted VM does not."""
    vm_id = await rig.running_vm()
    await rig.until(lambda: rig.beats and rig.beats[-1].vms == 1)
    beat = rig.beats[-1]
    assert beat.free == Resources(vcpus=7, memory_mib=960, disk_mib=99, slots=4)
    assert beat.reserved == Resources(vcpus=1, memory_mib=64, disk_mib=1, slots=1)
    assert beat.started_at is not None
    assert beat.started_at <= beat.heartbeat_at
    assert (beat.host_id, beat.driver, beat.images) == ("h1", "memory", ("tiny",))
    await rig.do(DeleteVm, vm_id)
    await rig.until(lambda: rig.beats[-1].vms == 0)
    assert rig.beats[-1].free == rig.beats[-1].capacity
    assert rig.beats[-1].reserved == Resources()


async def test_a_draining_host_refuses_new_vms_and_keeps_those_it_has(rig: Rig) -> None:
    """The order takes effect while the agent runs, both ways; what is here can be done with."""
    vm_id = await rig.running_vm()
    rig.orders.give(draining=True, reason="new kernel")
    refused = await rig.do(CreateVm, new_id(), spec=SPEC)
    assert refused.error is not None
    assert (refused.error.code, refused.state) == (ErrorCode.NO_CAPACITY, None)
    assert "draining" in refused.error.message
    await rig.until(lambda: rig.beats[-1].draining)
    assert (rig.beats[-1].drain_reason, rig.beats[-1].vms) == ("new kernel", 1)
    assert not rig.beats[-1].drained
    for kind, state in (
        (RebootVm, VmState.RUNNING),
        (ShutdownVm, VmState.STOPPED),
        (BootVm, VmState.RUNNING),
        (DeleteVm, VmState.DELETED),
    ):
        assert (await rig.do(kind, vm_id)).state is state
    await rig.until(lambda: rig.orders.told)
    await rig.until(lambda: rig.beats[-1].drained)
    assert rig.beats[-1].free == rig.beats[-1].capacity
    rig.orders.give(draining=False)
    await rig.running_vm()
    await rig.until(lambda: not rig.beats[-1].draining)
    assert rig.beats[-1].drain_reason == ""


async def test_a_create_that_was_begun_when_the_order_came_is_refused(rig: Rig) -> None:
    """A host that has said it is empty gets no VM, however late the order came."""
    rig.images.gate.clear()
    letter = rig.post(CreateVm, new_id(), spec=SPEC)
    await rig.until(lambda: rig.images.waiting)
    rig.orders.give(draining=True)
    await rig.until(lambda: rig.orders.told)
    rig.images.gate.set()
    await letter.answered.wait()
    assert rig.desk.operations[UUID(letter.headers["id"])][-1].status is OperationStatus.FAILED
    assert not list(rig.folder.glob("vms/*.json"))


async def test_no_command_is_taken_before_the_orders_are_known(tmp_path: Path) -> None:
    """VMs are found and sampled all the same; nothing is said of the host meanwhile."""
    rig = Rig(tmp_path)
    async with asyncio.timeout(LIMIT_S):
        async with asyncio.TaskGroup() as group:
            group.create_task(rig.run(), name="agent")
            vm_id = await rig.running_vm()
            rig.stop.set()
        rig.stop.clear()
        rig.started.clear()
        rig.beats.clear()
        rig.orders.give(draining=True)
        rig.orders.heard.clear()
        async with asyncio.TaskGroup() as group:
            group.create_task(rig.run(), name="agent")
            letter = rig.post(CreateVm, new_id(), spec=SPEC)
            seen = len(rig.flags_of(vm_id))
            await rig.until(lambda: len(rig.flags_of(vm_id)) >= seen + 5)
            assert not rig.started.is_set()
            assert not letter.answers
            assert not rig.beats
            rig.orders.heard.set()
            await letter.answered.wait()
            operation = rig.desk.operations[UUID(letter.headers["id"])][-1]
            assert operation.error is not None
            assert operation.error.code is ErrorCode.NO_CAPACITY
            await rig.until(lambda: rig.beats)
            assert all(beat.draining for beat in rig.beats)
            rig.orders.heard.clear()
            rig.stop.set()
        rig.stop.clear()
        # Nor does an agent that waits for its orders keep anybody from ending it.
        async with asyncio.TaskGroup() as group:
            group.create_task(rig.run(), name="agent")
            await rig.until(lambda: len(rig.flags_of(vm_id)) >= seen + 10)
            rig.stop.set()


async def test_a_deleted_vm_leaves_no_file(rig: Rig) -> None:
    """Record, disk and run directory go, once the last sample has arrived."""
    vm_id = await rig.running_vm()
    await rig.do(DeleteVm, vm_id)
    await rig.until(lambda: not list((rig.folder / "vms").glob("*.json")))
    kept = [p for p in rig.folder.rglob("*") if str(vm_id) in p.name or vm_id.hex in p.name]
    assert kept == []


async def test_a_deleted_vm_is_forgotten_although_nobody_heard_that_it_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has the acknowledgement and the agent died, or did not hear of it."""
    rig = Rig(tmp_path)
    async with whole_agent(rig):
        vm_id, other = await rig.running_vm(), await rig.running_vm()
        hear_all = Letter.ack_sync

        async def hear_nothing(letter: Letter) -> None:
            await hear_all(letter)
            raise TransientError("no word from the server")

        monkeypatch.setattr(Letter, "ack_sync", hear_nothing)
        await rig.do(DeleteVm, vm_id)
        deleted = await rig.do(DeleteVm, other)
    waiting = next(s for s in rig.sent if s.headers["id"] == str(deleted.operation_id))
    waiting.answers.append("lost")  # so this one will come again
    record_of = {vm: tmp_path / "vms" / f"{vm}.json" for vm in (vm_id, other)}
    assert all(path.exists() for path in record_of.values())
    async with whole_agent(rig):
        await rig.until(lambda: not record_of[vm_id].exists())
        assert record_of[other].exists()
        monkeypatch.setattr(Letter, "ack_sync", hear_all)
        rig.letters.put_nowait(waiting)
        await rig.until(lambda: not record_of[other].exists())
    assert waiting.answers[-1] == "ack"
