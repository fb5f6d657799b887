"""Which hypervisor really works here: found out by booting the tiny guest and seeing READY.

A device file says little: on some virtual hosts `/dev/kvm` starts VMs whose kernel then dies.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from schemas.ids import new_id
from vm_agent.drivers.abc import Driver, DriverError, MachinePlan, Probe, Vmm
from vm_agent.drivers.cloud_hypervisor import CloudHypervisorDriver
from vm_agent.drivers.firecracker import FirecrackerDriver
from vm_agent.drivers.jail import Jail
from vm_agent.drivers.metrics import CHANNELS, MetricsKind
from vm_agent.drivers.qemu import QemuDriver
from vm_agent.drivers.simulator import SimulatorDriver
from vm_agent.images import Image, render_kernel_args
from vm_agent.process import VmmProcesses

READY = b"READY"
_READY_S = 8.0
_POLL_S = 0.002
_MEMORY_MIB = 64


@dataclass(frozen=True, slots=True)
class Choice:
    """The driver that an agent will use, and why not the ones before it.

    Attributes:
        rejected: Name and reason of every candidate that failed.
    """

    driver: Driver
    probe: Probe
    rejected: tuple[tuple[str, str], ...]


def candidates(
    processes: VmmProcesses,
    *,
    firecracker: str = "",
    jailer: str = "",
    jailed: bool = True,
    metrics: MetricsKind = "file",
    qemu_accel: str = "kvm:tcg",
) -> list[Driver]:
    """The drivers to try, best first.

    Args:
        processes: The agent's VMM processes.
        firecracker: Path of the binary; empty for the one on PATH.
        jailer: Path of its jailer; empty for the one beside it, or on PATH.
        jailed: Whether Firecracker runs in jails.
        metrics: How Firecracker and the simulator tell their metrics.
        qemu_accel: QEMU's accelerators, best first.
    """
    named = Path(firecracker).absolute() if firecracker else on_path(FirecrackerDriver.executable)
    jail = find_jail(named, jailer) if named and jailed else None
    return [
        FirecrackerDriver(named, processes, jail, CHANNELS[metrics]),
        CloudHypervisorDriver(on_path(CloudHypervisorDriver.executable), processes),
        QemuDriver(on_path(QemuDriver.executable), processes, accel=qemu_accel),
        SimulatorDriver(processes, CHANNELS[metrics]),
    ]


def find_jail(firecracker: Path, jailer: str = "") -> Jail:
    """The jail of a binary: with the jailer that is named, or beside it, or on PATH."""
    beside = firecracker.with_name("jailer")
    found = jailer or (None if beside.is_file() else shutil.which("jailer"))
    return Jail(Path(found).absolute() if found else beside, firecracker)


def on_path(executable: str) -> Path | None:
    """A binary's absolute path, None if there is none."""
    found = shutil.which(executable)
    return Path(found).absolute() if found else None


async def choose_driver(
    drivers: Iterable[Driver],
    guest_image: Image,
    work_dir: Path,
    processes: VmmProcesses,
    uid: int | None = None,
) -> Choice:
    """Take the first driver that boots the guest.

    Args:
        drivers: In order of preference.
        guest_image: The tiny guest, or any image that prints READY.
        work_dir: Where run directories may be made; nothing stays there.
        processes: The agent's VMM processes.
        uid: The user that a guest is tried as.

    Raises:
        DriverError: None of them works; the message has every reason.
    """
    rejected: list[tuple[str, str]] = []
    for driver in drivers:
        found = await probe_driver(driver, guest_image, work_dir, processes, uid)
        if found.works:
            return Choice(driver, found, tuple(rejected))
        rejected.append((driver.name, found.reason))
    reasons = "; ".join(f"{name}: {reason}" for name, reason in rejected)
    raise DriverError(f"no hypervisor works here ({reasons or 'none was tried'})")


async def probe_driver(
    driver: Driver,
    guest_image: Image,
    work_dir: Path,
    processes: VmmProcesses,
    uid: int | None = None,
) -> Probe:
    """Boot the guest once, wait for READY a few seconds, and remove everything again."""
    try:
        version = await driver.probe_version()
    except DriverError as error:
        return Probe(works=False, version="", reason=str(error))
    run_dir = _make_run_dir(work_dir)
    plan = MachinePlan(
        vm_id=new_id(),
        incarnation=1,
        vcpus=1,
        memory_mib=_MEMORY_MIB,
        kernel=guest_image.kernel,
        initrd=guest_image.initrd,
        kernel_args=render_kernel_args(guest_image, driver.name, {}),
        run_dir=run_dir,
        uid=uid,
    )
    vmm: Vmm | None = None
    started = time.monotonic()
    try:
        vmm = await driver.create(plan)
        await driver.boot(vmm)
        async with asyncio.timeout(_READY_S):
            await wait_for_ready(driver.console(run_dir))
    except TimeoutError:
        reason = f"the probe guest did not get ready in {driver.name} within {_READY_S:g} s"
        return Probe(works=False, version=version, reason=reason)
    except DriverError as error:
        return Probe(works=False, version=version, reason=str(error))
    else:
        took_ms = round((time.monotonic() - started) * 1000)
        reason = f"{driver.name} {version} booted the probe guest in {took_ms} ms"
        return Probe(works=True, version=version, reason=reason)
    finally:
        if vmm is not None:
            await driver.kill(vmm)
            await processes.wait_exit(vmm.pid, vmm.start_ticks)
            await driver.destroy(vmm)
        shutil.rmtree(run_dir, ignore_errors=True)


def _make_run_dir(work_dir: Path) -> Path:
    work_dir.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="probe-", dir=work_dir))


async def wait_for_ready(console: Path) -> None:
    """Wait until a guest has printed READY; the caller sets the time limit."""
    while not _says_ready(console):
        await asyncio.sleep(_POLL_S)


def _says_ready(console: Path) -> bool:
    try:
        return READY in console.read_bytes()
    except FileNotFoundError:
        return False
