"""What the agent's logic needs of the host, so that tests can give it a host of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from uuid import UUID

from schemas.networking import Networking
from schemas.vms import VmSpec
from vm_agent.cgroups import Group, Limits
from vm_agent.drivers.abc import Driver, Nic, Vmm
from vm_agent.metering import Sources
from vm_agent.network.attachment import Attachment
from vm_agent.network.lease import Lease
from vm_agent.network.mending import Repairs
from vm_agent.network.path_check import Facts
from vm_agent.process import ExitStatus
from vm_agent.uids import UidPool


@dataclass(frozen=True, slots=True, kw_only=True)
class BootImage:
    """What a guest is booted from.

    Attributes:
        kernel_args: The whole kernel command line.
        rootfs: What the VM's own disk begins with; None if it begins empty.
        rootfs_bytes: Its size.
    """

    kernel: Path
    initrd: Path | None
    kernel_args: str
    rootfs: Path | None = None
    rootfs_bytes: int = 0


Reading = Callable[[], int | None]
"""A number as the kernel has it now; None if it cannot be read any more."""


def incarnation_name(vm_id: UUID, incarnation: int) -> str:
    """What an incarnation's run directory and control group are called."""
    return f"{vm_id.hex}-{incarnation}"


class Images(Protocol):
    """The host's image store."""

    def names(self) -> tuple[str, ...]:
        """Images that VMs can name."""

    async def prepare(self, driver: str, spec: VmSpec) -> BootImage:
        """The image of a spec; what a VM that exists boots from is verified.

        Raises:
            RefusedError: With `unknown_image`, or `bad_request` for kernel arguments that the
                image does not allow.
        """

    async def prepare_new(self, driver: str, spec: VmSpec) -> BootImage:
        """The same for a VM that is to be made: the rootfs is verified, too."""


class Networks(Protocol):
    """Interfaces for VMs, and what connects them. Errors are `vm_agent.network.NetworkError`."""

    @property
    def unavailable(self) -> str | None:
        """Why VMs get no interface here; None where they do."""

    @property
    def missing(self) -> str:
        """Why VMs are not connected although they should be; empty where nothing is amiss."""

    @property
    def connects(self) -> bool:
        """Whether VMs that start now are connected."""

    @property
    def names(self) -> tuple[str, ...]:
        """What addresses are from; empty where VMs are not connected."""

    @property
    def tenants(self) -> Mapping[str, int]:
        """Numbers of the customers that have a VM here."""

    async def open(self, vms: Iterable[Attachment]) -> None:
        """Make what connects VMs, and take over those that are connected."""

    async def lease(self, vm_id: UUID, customer_id: str, wish: Networking) -> Lease | None:
        """A VM's slot and addresses, given to it if need be; None where VMs are not connected.

        Raises:
            RefusedError: With `no_capacity`: there is none left of what it wants.
        """

    def restore(self, vm_id: UUID, customer_id: str, lease: Lease) -> None:
        """Hold what a VM has already."""

    def release(self, vm_id: UUID) -> None:
        """Give back what a VM has; nothing happens if it has nothing."""

    def nic_of(self, vm_id: UUID, incarnation: int, lease: Lease | None) -> Nic | None:
        """What `create` will make, or None where VMs get no interface."""

    async def create(self, nic: Nic, owner: int | None = None) -> None:
        """Make the interface with all its counters at zero; replaces one that is left over.

        The user `owner` may open it. It is connected to nothing.
        """

    async def attach(self, nic: Nic, vm: Attachment) -> None:
        """Connect an interface that its VMM has opened and whose guest does not run yet."""

    async def change(self, vm: Attachment) -> None:
        """Let other rules hold for a VM; nothing happens if it is not connected."""

    async def destroy(self, nic: Nic) -> None:
        """Remove the interface and its counters; nothing happens if it is gone."""

    def at_once(self) -> AbstractContextManager[None]:
        """Read all counters now, for everybody who asks for them within the block."""

    async def reconcile(self) -> Repairs:
        """Compare what stands with what should, and put it right."""

    async def drops(self) -> Mapping[str, Mapping[str, int]]:
        """Packets that were dropped so far, by interface in the fabric and reason."""

    async def examine(self, tap: str) -> Facts:
        """Look at the path of one VM, with probes to its own addresses; at most two seconds."""


class Processes(Protocol):
    """The VMMs' processes, as the kernel sees them."""

    def boottime_ns(self) -> int:
        """CLOCK_BOOTTIME."""

    def boot_id(self) -> str:
        """The host's current boot."""

    def is_alive(self, vmm: Vmm) -> bool:
        """Whether that very process runs."""

    def cpu_ns(self, vmm: Vmm) -> int | None:
        """CPU time of a VMM by its own clock; None once it is gone."""

    def kill(self, vmm: Vmm) -> None:
        """SIGKILL that very process; nothing happens if it is gone."""

    async def wait_exit(self, vmm: Vmm) -> ExitStatus:
        """Return once the process has ended."""

    async def sources(self, vmm: Vmm, nic: Nic | None, settled_cpu: Reading) -> Sources:
        """The kernel's counters of a VMM; `settled_cpu` answers for it once it is gone."""

    def end_strays(self, run_root: Path, known: frozenset[int]) -> list[int]:
        """End VMMs of this agent that are not `known`; their pids."""


class Groups(Protocol):
    """Control groups, by name. Errors are `vm_agent.cgroups.CgroupError`."""

    @property
    def unavailable(self) -> str | None:
        """Why VMs run without limits here; None where they have them."""

    def create(self, name: str, limits: Limits) -> Group | None:
        """Make a group with all its counters at zero; None where there are none."""

    def cpu_ns(self, name: str) -> int | None:
        """CPU time of all that ever ran in a group, as long as it is there."""

    def oom_kills(self, name: str) -> int:
        """How many of its members were killed for want of memory."""

    def names(self) -> list[str]:
        """All groups of this agent."""

    def destroy(self, name: str) -> None:
        """End what is in a group and remove it; nothing happens if it is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The host that an agent works on.

    Attributes:
        host_id: Its name.
        driver: What new VMs get.
        drivers: All by name, for VMs that an earlier run started with another one.
        groups: Control groups of VMs.
        uids: User ids for VMs; None where the agent cannot change users.
        data_dir: Absolute; run directories and disks are below it.
    """

    host_id: str
    driver: Driver
    drivers: Mapping[str, Driver]
    images: Images
    networks: Networks
    processes: Processes
    groups: Groups
    uids: UidPool | None
    data_dir: Path

    @property
    def run_root(self) -> Path:
        """Run directories of all incarnations."""
        return self.data_dir / "run"

    def run_dir(self, vm_id: UUID, incarnation: int) -> Path:
        """The run directory of one incarnation."""
        return self.run_root / incarnation_name(vm_id, incarnation)

    def console(self, vm_id: UUID) -> Path:
        """What the VM's guest has printed, over all its incarnations; bounded."""
        return self.data_dir / "consoles" / f"{vm_id}.log"

    def disk(self, vm_id: UUID) -> Path:
        """The VM's own disk."""
        return self.data_dir / "disks" / f"{vm_id}.img"
