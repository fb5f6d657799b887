"""VMMs that end by themselves: noticed, told with their reason, started again if so wished."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from structlog.testing import capture_logs

from runtime.clock import utc_now
from schemas.commands import BootVm, DeleteVm, ShutdownVm
from schemas.events import VmStarted, VmStopped
from schemas.hosts import OperationStatus
from schemas.ids import new_id
from schemas.vms import FAILURES, Counters, ExitReason, RestartPolicy, VmSpec, VmState, VmStatus
from tests.support.whole_agent import SPEC, Rig, whole_agent
from vm_agent.restarts import STEADY_MS, after_death, backoff
from vm_agent.store import Current, Record

AGAIN = replace(SPEC, restart=RestartPolicy.ON_FAILURE)
NOW = datetime(2026, 1, 1, tzinfo=UTC)

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with whole_agent(Rig(tmp_path, watchdog_s=1)) as made:
        yield made


def status_of(rig: Rig, vm_id: UUID) -> VmStatus:
    """What was told of a VM last."""
    return [s for s in rig.desk.statuses if s.vm_id == vm_id][-1]


def events_of(rig: Rig, vm_id: UUID) -> list[str]:
    """What happened to a VM, in order: `started`, or the reason of a stop."""
    words = []
    for event in rig.desk.events.values():
        if event.vm_id == vm_id:
            match event:
                case VmStarted():
                    words.append("started")
                case VmStopped():
                    words.append(event.reason.value)
    return words


async def test_a_vm_that_crashes_stays_down_unless_its_spec_says_otherwise(rig: Rig) -> None:
    """The default is never; the end, and what the VMM said, is told within a second."""
    vm_id = await rig.running_vm()
    with capture_logs() as log:
        rig.kernel.living(vm_id)[0].die(139)
        async with asyncio.timeout(1):
            await rig.until(lambda: status_of(rig, vm_id).state is VmState.STOPPED)
        await rig.until(lambda: any(line["event"] == "vmm.ended" for line in log))
    (ended,) = [line for line in log if line["event"] == "vmm.ended"]
    assert (ended["reason"], ended["said"]) == ("crashed", "it panicked")
    assert status_of(rig, vm_id).exit_reason is ExitReason.CRASHED
    assert status_of(rig, vm_id).restart_at is None
    assert events_of(rig, vm_id) == ["started", "crashed"]


async def test_a_vm_that_crashes_is_started_again_with_a_backoff(rig: Rig) -> None:
    """Each time as a new incarnation, and later each time."""
    vm_id = await rig.running_vm(AGAIN)
    waits = []
    for failure in (1, 2):
        rig.kernel.living(vm_id)[0].die(139)
        await rig.until(lambda f=failure: status_of(rig, vm_id).failures == f)  # type: ignore[misc]
        stopped = status_of(rig, vm_id)
        assert stopped.restart_at is not None
        waits.append((stopped.restart_at - stopped.updated_at).total_seconds())
        await rig.until(lambda: rig.kernel.living(vm_id))
        assert utc_now() >= stopped.restart_at
        await rig.until(lambda: status_of(rig, vm_id).state is VmState.RUNNING)
        assert status_of(rig, vm_id).incarnation == failure + 1
        assert status_of(rig, vm_id).restart_at is None
    assert waits == [pytest.approx(1, abs=0.3), pytest.approx(2, abs=0.3)]
    assert events_of(rig, vm_id) == ["started", "crashed", "started", "crashed", "started"]


async def test_a_guest_that_stops_in_order_is_not_started_again(rig: Rig) -> None:
    """Exit by the guest's own will is no failure."""
    vm_id = await rig.running_vm(AGAIN)
    rig.kernel.living(vm_id)[0].die(0)
    await rig.until(lambda: status_of(rig, vm_id).state is VmState.STOPPED)
    assert status_of(rig, vm_id).restart_at is None


async def test_a_vm_that_waits_for_its_restart_obeys_commands(rig: Rig) -> None:
    """A shutdown calls the restart off, a boot need not wait for it, a delete ends it."""
    off, at_once, gone = [await rig.running_vm(AGAIN) for _ in range(3)]
    for vm_id in (off, at_once, gone):
        rig.kernel.living(vm_id)[0].die(139)
        await rig.until(lambda v=vm_id: status_of(rig, v).restart_at)  # type: ignore[misc]
    assert (await rig.do(ShutdownVm, off)).status is OperationStatus.SUCCEEDED
    assert status_of(rig, off).restart_at is None
    assert (await rig.do(BootVm, at_once)).state is VmState.RUNNING
    assert (await rig.do(DeleteVm, gone)).state is VmState.DELETED
    await asyncio.sleep(1.2)  # when the restarts would have been due
    assert [len(rig.kernel.living(v)) for v in (off, at_once, gone)] == [0, 1, 0]
    assert status_of(rig, at_once).incarnation == 2
    # And a shutdown of a VM that just is stopped is refused as ever.
    assert (await rig.do(ShutdownVm, off)).status is OperationStatus.FAILED


async def test_a_restart_that_fails_is_tried_again(rig: Rig) -> None:
    """With the reason as the last error meanwhile."""
    vm_id = await rig.running_vm(AGAIN)
    rig.driver.fails = {"create"}
    rig.kernel.living(vm_id)[0].die(139)
    await rig.until(lambda: status_of(rig, vm_id).failures == 2)
    error = status_of(rig, vm_id).last_error
    assert error is not None
    assert "create fails" in error.message
    rig.driver.fails = set()
    await rig.until(lambda: status_of(rig, vm_id).state is VmState.RUNNING)
    assert len(rig.kernel.living(vm_id)) == 1


async def test_a_restart_outlives_the_agent(tmp_path: Path) -> None:
    """One agent sees the crash, the next one starts the VM."""
    first = Rig(tmp_path)
    async with whole_agent(first):
        vm_id = await first.running_vm(AGAIN)
        first.kernel.living(vm_id)[0].die(139)
        await first.until(lambda: status_of(first, vm_id).restart_at)
    again = Rig(tmp_path)
    again.kernel, again.driver = first.kernel, first.driver
    async with whole_agent(again):
        await again.until(lambda: again.kernel.living(vm_id))
        await again.until(lambda: status_of(again, vm_id).state is VmState.RUNNING)


async def test_after_a_reboot_of_the_host_its_vms_are_down_and_those_that_should_run_come_back(
    tmp_path: Path,
) -> None:
    """Stopped with that reason, billed as last seen; no process of the new boot is mistaken."""
    first = Rig(tmp_path)
    async with whole_agent(first):
        once, again = await first.running_vm(), await first.running_vm(AGAIN)
        await first.until(lambda: len(first.flags_of(again)) > 2)
    # The numbers of the old boot may mean something else now: here they still "live".
    second = Rig(tmp_path)
    second.kernel, second.driver = first.kernel, first.driver
    second.kernel.boot = "boot-2"
    old = {machine.vmm.pid for machine in second.kernel.living()}
    async with whole_agent(second):
        await second.until(lambda: status_of(second, again).state is VmState.RUNNING)
        assert status_of(second, again).incarnation == 2
        assert status_of(second, once).state is VmState.STOPPED
        for vm_id in (once, again):
            assert "host_rebooted" in events_of(second, vm_id)
    assert old <= {machine.vmm.pid for machine in second.kernel.living()}, "it shot at strangers"


async def test_a_vmm_that_hangs_is_ended_and_its_vm_started_again(rig: Rig) -> None:
    """After the watchdog's time, with that reason; other VMs are not touched."""
    vm_id, other = await rig.running_vm(AGAIN), await rig.running_vm(AGAIN)
    rig.driver.deaf = {vm_id}
    await rig.until(lambda: "hung" in events_of(rig, vm_id))
    rig.driver.deaf = set()
    await rig.until(lambda: status_of(rig, vm_id).state is VmState.RUNNING)
    assert status_of(rig, vm_id).incarnation == 2
    assert events_of(rig, other) == ["started"]


async def test_a_vmm_that_is_short_of_memory_is_told_so(rig: Rig) -> None:
    """A SIGKILL by the kernel is no SIGKILL by a person."""
    vm_id = await rig.running_vm()
    rig.kernel.groups.starved.add(f"{vm_id.hex}-1")
    rig.kernel.living(vm_id)[0].die(-9)
    await rig.until(lambda: events_of(rig, vm_id) == ["started", "oom_killed"])


def a_record(state: VmState, failures: int, *, by_command: bool, again: bool) -> Record:
    """A record of a VM in some state."""
    return Record(
        vm_id=new_id(),
        customer_id="acme",
        spec=AGAIN if again else SPEC,
        state=state,
        created_at=NOW,
        failures=failures,
        current=Current(command_id=new_id(), verb="boot", incarnation=1) if by_command else None,
    )


@given(
    state=st.sampled_from(VmState),
    reason=st.sampled_from(ExitReason),
    failures=st.integers(0, 100),
    uptime_ms=st.integers(0, 2 * STEADY_MS),
    by_command=st.booleans(),
    again=st.booleans(),
)
def test_only_failures_of_running_vms_that_wish_it_lead_to_a_restart(
    state: VmState, reason: ExitReason, failures: int, uptime_ms: int, by_command: bool, again: bool
) -> None:
    """And the count begins anew after a time that went well."""
    record = a_record(state, failures, by_command=by_command, again=again)
    counted, due = after_death(record, reason, Counters(uptime_ms=uptime_ms), NOW)
    ran = state in (VmState.RUNNING, VmState.PAUSED) or (
        state is VmState.BOOTING and not by_command
    )
    assert (due is not None) == (again and ran and reason in FAILURES)
    if due is not None:
        assert counted == (1 if uptime_ms >= STEADY_MS else failures + 1)
        assert timedelta(seconds=1) <= due - NOW <= timedelta(seconds=60)


def test_the_backoff_doubles_up_to_a_minute() -> None:
    """1, 2, 4 … 60 s, whatever the count."""
    waits = [backoff(n).total_seconds() for n in (1, 2, 3, 6, 7, 8, 1000)]
    assert waits == [1, 2, 4, 32, 60, 60, 60]


def test_a_policy_is_part_of_the_spec() -> None:
    """Never is the default."""
    assert VmSpec(image="tiny").restart is RestartPolicy.NEVER
