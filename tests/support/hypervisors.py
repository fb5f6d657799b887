"""Real VMMs for tests: which of them work here, and a rig that never leaves one behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from decisec.devkit import firecracker as firecracker_kit
from decisec.devkit import guest as guest_kit
from decisec.devkit.uv import DevkitError
from schemas.ids import new_id
from schemas.units import MIB
from vm_agent.cgroups import Cgroups, Limits
from vm_agent.drivers.abc import Driver, MachinePlan, Nic, Probe, Vmm
from vm_agent.drivers.cloud_hypervisor import CloudHypervisorDriver
from vm_agent.drivers.firecracker import FirecrackerDriver
from vm_agent.drivers.metrics import CHANNELS, MetricsKind
from vm_agent.drivers.qemu import QemuDriver
from vm_agent.drivers.simulator import SimulatorDriver
from vm_agent.images import Image, ImageStore, render_kernel_args
from vm_agent.network import taps
from vm_agent.probe import find_jail, on_path, probe_driver
from vm_agent.process import VmmProcesses

STAND_IN = "cloud-hypervisor-stand-in"
DRIVERS = ("firecracker", "qemu", "simulator", "cloud-hypervisor", STAND_IN)
REAL_DRIVERS = ("firecracker", "qemu")
GUEST_ARGS = ("blkw", "blkr", "tx", "loop", "hz", "spin", "relay")
UID = 1_900_000_777
LIMITS = Limits(cpus=2, memory_bytes=512 * MIB, tasks=160)
DISK_BYTES = 8 * 1024 * 1024

_ROOT = Path(__file__).resolve().parents[2]


def cache_dir() -> Path:
    """Where fetched binaries stay between test runs."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "decisec" / "tests"


def find_firecracker() -> tuple[Path | None, str]:
    """The binary on PATH, else the pinned one; or None and the reason."""
    if found := shutil.which("firecracker"):
        return Path(found), ""
    directory = cache_dir() / "bin"
    try:
        firecracker_kit.fetch(directory)
    except DevkitError as error:
        return None, str(error)
    return directory / "firecracker", ""


@dataclass(slots=True)
class Lab:
    """A guest as an image, and what was found out about the hypervisors.

    Attributes:
        stand_in: An executable that behaves as Cloud Hypervisor.
        probes: By name in `DRIVERS`: whether it boots the guest here.
        qemu_accel: QEMU's accelerators.
        memory_mib: What the guest needs.
        patience_s: How long a guest may take to say or do something on a busy machine.
    """

    image: Image
    firecracker: Path | None
    stand_in: Path
    probes: dict[str, Probe] = field(default_factory=dict)
    qemu_accel: str = "kvm:tcg"
    memory_mib: int = 64
    patience_s: float = 20.0

    def driver(self, name: str, processes: VmmProcesses, metrics: MetricsKind = "file") -> Driver:
        """A fresh driver, as a fresh agent would make it."""
        match name:
            case "firecracker":
                # As an agent has it: jailed where that is possible at all.
                jailed = self.firecracker is not None and os.geteuid() == 0
                jail = find_jail(self.firecracker) if jailed and self.firecracker else None
                return FirecrackerDriver(self.firecracker, processes, jail, CHANNELS[metrics])
            case "qemu":
                qemu = on_path(QemuDriver.executable)
                return QemuDriver(qemu, processes, accel=self.qemu_accel)
            case "simulator":
                return SimulatorDriver(processes, CHANNELS[metrics])
            case "cloud-hypervisor":
                binary = on_path(CloudHypervisorDriver.executable)
                return CloudHypervisorDriver(binary, processes)
            case _:
                assert name == STAND_IN
                # The interpreter that it runs in may be out of another user's reach.
                return CloudHypervisorDriver(self.stand_in, processes, confined=False)

    def require(self, name: str) -> None:
        """Skip the test, with the reason, where that hypervisor does not work."""
        if not self.probes[name].works:
            pytest.skip(f"{name}: {self.probes[name].reason}")


def write_stand_in(directory: Path) -> Path:
    """An executable `cloud-hypervisor` that replaces itself by the stand-in, pid kept."""
    libraries = Path(msgspec.__file__).parents[1]
    script = directory / "cloud-hypervisor"
    script.write_text(
        f"#!/bin/sh\nPYTHONPATH='{_ROOT}:{libraries}' exec '{sys.executable}' -S -P"
        ' -m tests.support.cloud_hypervisor "$@"\n'
    )
    script.chmod(0o755)
    return script


@contextmanager
def open_lab(drivers: Sequence[str] = DRIVERS) -> Iterator[Lab]:
    """Build the guest, import it and try these hypervisors. For a module-scoped fixture."""
    with tempfile.TemporaryDirectory(prefix="dsl-") as directory:
        guest = Path(directory) / "guest"
        try:
            guest_kit.build(guest)
        except DevkitError as error:
            pytest.skip(f"the tiny guest cannot be built: {error}")
        store = ImageStore(Path(directory) / "images")
        image = store.add("tiny", guest, allowed_args=GUEST_ARGS)
        firecracker, reason = find_firecracker()
        lab = Lab(image, firecracker, write_stand_in(Path(directory)))
        asyncio.run(_probe_all(lab, drivers, Path(directory) / "run"))
        if reason:
            lab.probes["firecracker"] = Probe(works=False, version="", reason=reason)
        yield lab


async def _probe_all(lab: Lab, drivers: Sequence[str], work: Path) -> None:
    for name in drivers:
        processes = VmmProcesses()
        driver = lab.driver(name, processes)
        lab.probes[name] = await probe_driver(driver, lab.image, work, processes, UID)
        await driver.close()


class Rig:
    """One driver with its processes, and every VMM and interface made through it.

    Attributes:
        run_root: Where run directories are, as an agent has them. Its path is too long for a
            Unix socket's address: no driver may mind.
    """

    def __init__(self, lab: Lab, name: str, directory: Path, metrics: MetricsKind = "file") -> None:
        self.lab = lab
        self.name = name
        self.metrics = metrics
        self.directory = directory
        self.run_root = directory / ("long" * 30) / "run"
        self.run_root.mkdir(parents=True)
        self.processes = VmmProcesses()
        self.driver = lab.driver(name, self.processes, metrics)
        self.groups = Cgroups(f"rig-{new_id().hex[-8:]}") if os.geteuid() == 0 else None
        self._vmms: list[Vmm] = []
        self._nics: list[Nic] = []

    @property
    def exact(self) -> bool:
        """Whether the guest's bytes come out as it was told: none is made up, or missing.

        The tiny guest finds no disk in a real Cloud Hypervisor, whose devices are all on PCI.
        """
        return not self.driver.simulated and self.name != "cloud-hypervisor"

    def require_button(self) -> None:
        """Skip the test where the guest does not hear that it is to stop."""
        if self.name == "cloud-hypervisor":
            pytest.skip("the tiny guest does not hear Cloud Hypervisor's power button")

    def plan(self, *, nic: Nic | None = None, disk: bool = True, **args: int) -> MachinePlan:
        """A plan for a new VM with its own run directory; `args` are the guest's."""
        vm_id = new_id()
        run_dir = self.run_root / f"{vm_id.hex}-1"
        run_dir.mkdir()
        path = None
        if disk:
            path = self.directory / f"{vm_id.hex[-8:]}.img"
            with path.open("wb") as file:
                file.truncate(DISK_BYTES)
        image = self.lab.image
        name = run_dir.name
        group = self.groups.create(name, LIMITS) if self.groups else None
        words = {key: str(value) for key, value in args.items()}
        return MachinePlan(
            vm_id=vm_id,
            incarnation=1,
            vcpus=1,
            memory_mib=self.lab.memory_mib,
            kernel=image.kernel,
            initrd=image.initrd,
            kernel_args=render_kernel_args(image, self.driver.name, words),
            disk=path,
            nic=nic,
            run_dir=run_dir,
            uid=UID if os.geteuid() == 0 else None,
            group=group,
        )

    async def create(self, plan: MachinePlan) -> Vmm:
        """Create through the driver, to be ended with the rig."""
        vmm = await self.driver.create(plan)
        self._vmms.append(vmm)
        return vmm

    async def booted(self, **plan: Any) -> Vmm:
        """A VM whose guest has printed READY (and done its work, if it is a real one)."""
        vmm = await self.create(self.plan(**plan))
        await self.driver.boot(vmm)
        await self.says(vmm, "READY" if self.name == "simulator" else "DONE")
        return vmm

    async def nic(self) -> Nic:
        """A tap, to be removed with the rig; skips where there are none."""
        if reason := taps.available():
            pytest.skip(reason)
        nic = await taps.create(taps.nic_of(new_id(), 1), UID)
        self._nics.append(nic)
        return nic

    async def says(self, vmm: Vmm, word: str) -> None:
        """Wait until the guest has printed a word."""
        console = self.driver.console(Path(vmm.run_dir))
        async with asyncio.timeout(self.lab.patience_s):
            while not await asyncio.to_thread(_contains, console, word):
                await asyncio.sleep(0.005)

    async def exits(self, vmm: Vmm) -> None:
        """Wait until the VMM has ended."""
        async with asyncio.timeout(self.lab.patience_s):
            await self.processes.wait_exit(vmm.pid, vmm.start_ticks)

    def another_driver(self) -> Driver:
        """One more driver with connections of its own, to be closed by who asked for it."""
        return self.lab.driver(self.name, VmmProcesses(), self.metrics)

    async def restart_agent(self) -> Driver:
        """Forget everything but the VMMs, as a killed agent does; returns the new driver."""
        await self.driver.close()
        self.driver = self.lab.driver(self.name, VmmProcesses(), self.metrics)
        return self.driver

    async def close(self) -> None:
        """End every VMM, remove every interface."""
        for vmm in self._vmms:
            self.processes.kill(vmm.pid, vmm.start_ticks)
            await self.processes.wait_exit(vmm.pid, vmm.start_ticks)
        await self.driver.close()
        for nic in self._nics:
            await taps.destroy(nic)
        if self.groups is not None:
            for name in self.groups.names():
                await asyncio.to_thread(self.groups.destroy, name)
            self.groups.close()


def _contains(console: Path, word: str) -> bool:
    try:
        return word in console.read_text(errors="replace")
    except FileNotFoundError:
        return False


@asynccontextmanager
async def rig(lab: Lab, name: str, metrics: MetricsKind = "file") -> AsyncIterator[Rig]:
    """A rig for one test; skips it, with the reason, where the hypervisor does not work."""
    lab.require(name)
    with tempfile.TemporaryDirectory(prefix="decisec-rig-") as directory:
        made = Rig(lab, name, Path(directory), metrics)
        try:
            yield made
        finally:
            await made.close()


def processes_in(directory: Path) -> list[int]:
    """Pids of all processes that work below a directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if path.readlink().is_relative_to(directory.resolve()):
                found.append(int(path.parent.name))
        except OSError:
            continue  # it has ended meanwhile
    return found


__all__ = [
    "DRIVERS",
    "REAL_DRIVERS",
    "Lab",
    "Rig",
    "open_lab",
    "processes_in",
    "rig",
]
