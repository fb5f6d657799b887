"""Real VMMs for tests: which of them work here, and a rig that never leaves one behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from decisec.devkit import firecracker as firecracker_kit
from decisec.devkit import guest as guest_kit
from decisec.devkit.uv import DevkitError
from schemas.ids import new_id
from vm_agent import network
from vm_agent.drivers.abc import Driver, MachinePlan, Nic, Probe, Vmm
from vm_agent.drivers.firecracker import FirecrackerDriver
from vm_agent.drivers.qemu import QemuDriver
from vm_agent.drivers.simulator import SimulatorDriver
from vm_agent.images import Image, ImageStore, render_kernel_args
from vm_agent.probe import probe_driver
from vm_agent.process import VmmProcesses

DRIVERS = ("firecracker", "qemu", "simulator")
REAL_DRIVERS = ("firecracker", "qemu")
GUEST_ARGS = ("blkw", "blkr", "tx", "loop", "spin")
DISK_BYTES = 8 * 1024 * 1024


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
        probes: By driver name: whether it boots the guest here.
        qemu_accel: QEMU's accelerators.
        memory_mib: What the guest needs.
        patience_s: How long a guest may take to say or do something on a busy machine.
    """

    image: Image
    firecracker: Path | None
    probes: dict[str, Probe]
    qemu_accel: str = "kvm:tcg"
    memory_mib: int = 64
    patience_s: float = 20.0

    def driver(self, name: str, processes: VmmProcesses) -> Driver:
        """A fresh driver, as a fresh agent would make it."""
        return make_driver(name, self.firecracker, processes, self.qemu_accel)

    def require(self, name: str) -> None:
        """Skip the test, with the reason, where that hypervisor does not work."""
        if not self.probes[name].works:
            pytest.skip(f"{name}: {self.probes[name].reason}")


def make_driver(
    name: str, firecracker: Path | None, processes: VmmProcesses, qemu_accel: str = "kvm:tcg"
) -> Driver:
    """A driver by its name."""
    if name == "firecracker":
        return FirecrackerDriver(firecracker, processes)
    if name == "qemu":
        found = shutil.which("qemu-system-x86_64")
        return QemuDriver(Path(found) if found else None, processes, accel=qemu_accel)
    return SimulatorDriver(processes)


@contextmanager
def open_lab() -> Iterator[Lab]:
    """Build the guest, import it and try every hypervisor. For a module-scoped fixture."""
    with tempfile.TemporaryDirectory(prefix="dsl-") as directory:
        guest = Path(directory) / "guest"
        try:
            guest_kit.build(guest)
        except DevkitError as error:
            pytest.skip(f"the tiny guest cannot be built: {error}")
        store = ImageStore(Path(directory) / "images")
        image = store.add("tiny", guest, allowed_args=GUEST_ARGS)
        firecracker, reason = find_firecracker()
        probes = asyncio.run(_probe_all(image, firecracker, Path(directory) / "run"))
        if reason:
            probes["firecracker"] = Probe(works=False, version="", reason=reason)
        yield Lab(image, firecracker, probes)


async def _probe_all(image: Image, firecracker: Path | None, work: Path) -> dict[str, Probe]:
    found = {}
    for name in DRIVERS:
        processes = VmmProcesses()
        driver = make_driver(name, firecracker, processes)
        found[name] = await probe_driver(driver, image, work, processes)
        await driver.close()
    return found


class Rig:
    """One driver with its processes, and every VMM and interface made through it.

    Attributes:
        run_root: Where run directories are, as an agent has them. Its path is too long for a
            Unix socket's address: no driver may mind.
    """

    def __init__(self, lab: Lab, name: str, directory: Path) -> None:
        self.lab = lab
        self.name = name
        self.directory = directory
        self.run_root = directory / ("long" * 30) / "run"
        self.run_root.mkdir(parents=True)
        self.processes = VmmProcesses()
        self.driver = lab.driver(name, self.processes)
        self._vmms: list[Vmm] = []
        self._nics: list[Nic] = []

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
        words = {name: str(value) for name, value in args.items()}
        return MachinePlan(
            vm_id=vm_id,
            incarnation=1,
            vcpus=1,
            memory_mib=self.lab.memory_mib,
            kernel=image.kernel,
            initrd=image.initrd,
            kernel_args=render_kernel_args(image, self.name, words),
            disk=path,
            nic=nic,
            run_dir=run_dir,
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
        if reason := network.available():
            pytest.skip(reason)
        nic = await network.create(new_id(), 1)
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
        return self.lab.driver(self.name, VmmProcesses())

    async def restart_agent(self) -> Driver:
        """Forget everything but the VMMs, as a killed agent does; returns the new driver."""
        await self.driver.close()
        self.driver = self.lab.driver(self.name, VmmProcesses())
        return self.driver

    async def close(self) -> None:
        """End every VMM, remove every interface."""
        for vmm in self._vmms:
            self.processes.kill(vmm.pid, vmm.start_ticks)
            await self.processes.wait_exit(vmm.pid, vmm.start_ticks)
        await self.driver.close()
        for nic in self._nics:
            await network.destroy(nic)


def _contains(console: Path, word: str) -> bool:
    try:
        return word in console.read_text(errors="replace")
    except FileNotFoundError:
        return False


@asynccontextmanager
async def rig(lab: Lab, name: str) -> AsyncIterator[Rig]:
    """A rig for one test; skips it, with the reason, where the hypervisor does not work."""
    lab.require(name)
    with tempfile.TemporaryDirectory(prefix="decisec-rig-") as directory:
        made = Rig(lab, name, Path(directory))
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
