"""Why a VMM ended, from what it left; its log stays short; where the driver stands in line."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.ids import new_id
from schemas.vms import ExitReason
from tests.support.cloud_hypervisor.events import render_event as event
from vm_agent.drivers.abc import DriverError, Vmm
from vm_agent.drivers.cloud_hypervisor import CloudHypervisorDriver
from vm_agent.drivers.cloud_hypervisor_events import EVENTS
from vm_agent.drivers.cloud_hypervisor_log import LOG
from vm_agent.drivers.passing import mark_killed
from vm_agent.drivers.paths import API_SOCKET
from vm_agent.probe import candidates
from vm_agent.process import VmmProcesses

PANIC = event("guest", "panic", event="panic")
ENDED = event("vm", "shutdown") + event("vm", "deleted") + event("vmm", "shutdown")
RESET = event("vm", "rebooting") + event("vm", "rebooted")
FAILED = b'cloud-hypervisor: 1.2s: <vcpu0> ERROR:vmm/src/cpu.rs:1450 -- VCPU generated error: "x"\n'


def vmm_in(run_dir: Path) -> Vmm:
    """The handle of a VMM that is gone."""
    return Vmm(
        vm_id=new_id(),
        incarnation=1,
        driver="cloud-hypervisor",
        pid=2**22 + 1,  # above the kernel's limit for pids
        start_ticks=1,
        run_dir=str(run_dir),
    )


@pytest.mark.parametrize(
    ("exit_code", "events", "log", "socket", "killed", "reason"),
    [
        (0, ENDED, b"", False, False, ExitReason.GUEST_SHUTDOWN),
        # The last events are lost: the thread that writes them is not waited for.
        (0, b"", b"", False, False, ExitReason.GUEST_SHUTDOWN),
        (0, PANIC + ENDED, b"", False, False, ExitReason.CRASHED),
        (0, PANIC + RESET + ENDED, b"", False, False, ExitReason.GUEST_SHUTDOWN),
        (0, ENDED, FAILED, False, False, ExitReason.CRASHED),
        (1, b"", b"", True, False, ExitReason.CRASHED),
        (-9, b"", b"", True, True, ExitReason.KILLED),
        (-9, b"", b"", True, False, ExitReason.KILLED),
        (-31, b"", b"", True, False, ExitReason.CRASHED),
        (None, b"", b"", True, True, ExitReason.KILLED),
        (None, b"", b"", True, False, ExitReason.UNKNOWN),
        (None, b"", b"", False, False, ExitReason.GUEST_SHUTDOWN),
        (None, ENDED, b"", True, False, ExitReason.GUEST_SHUTDOWN),
        (None, PANIC + ENDED, b"", False, False, ExitReason.CRASHED),
    ],
)
async def test_the_reason_of_an_end(
    tmp_path: Path,
    exit_code: int | None,
    events: bytes,
    log: bytes,
    socket: bool,
    killed: bool,
    reason: ExitReason,
) -> None:
    """Told by exit code, events, log and the socket that an orderly end removes."""
    (tmp_path / EVENTS).write_bytes(events)
    (tmp_path / LOG).write_bytes(log)
    if socket:
        (tmp_path / API_SOCKET).touch()
    if killed:
        mark_killed(tmp_path)
    driver = CloudHypervisorDriver(None, VmmProcesses())
    assert driver.exit_reason(vmm_in(tmp_path), exit_code) is reason
    await driver.close()


async def test_a_run_directory_that_is_gone_tells_nothing(tmp_path: Path) -> None:
    """The exit code is all there is."""
    driver = CloudHypervisorDriver(None, VmmProcesses())
    vmm = vmm_in(tmp_path / "gone")
    assert driver.exit_reason(vmm, 0) is ExitReason.GUEST_SHUTDOWN
    assert driver.exit_reason(vmm, None) is ExitReason.UNKNOWN


async def test_without_a_binary_every_verb_that_needs_it_says_so() -> None:
    """The probe's reason then is fit for an operator."""
    driver = CloudHypervisorDriver(None, VmmProcesses())
    with pytest.raises(DriverError, match="there is no cloud-hypervisor on PATH"):
        await driver.probe_version()


def test_it_comes_after_firecracker_and_before_qemu() -> None:
    """QEMU also works without KVM, so it is the last that runs a guest."""
    names = [driver.name for driver in candidates(VmmProcesses())]
    assert names == ["firecracker", "cloud-hypervisor", "qemu", "simulator"]
