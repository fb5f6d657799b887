"""What a hypervisor driver is: a few lifecycle verbs over one VMM process per VM.

A driver keeps no state of its own that a restart of the agent could lose: everything it needs
to find a VMM again is in the `Vmm` handle and the VM's run directory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from uuid import UUID

import msgspec

from schemas.devices import RateLimits
from schemas.vms import ExitReason, SnapshotKind
from vm_agent.cgroups import Group


class Ability(StrEnum):
    """What a driver can do beyond the verbs that all have."""

    PAUSE = "pause"
    SNAPSHOT = "snapshot"
    DIFF_SNAPSHOT = "diff snapshot"
    METADATA = "metadata"
    BALLOON = "a balloon"
    DISK_LIMITS = "limits of the disk"
    NET_LIMITS = "limits of the network"


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """A network interface for a VM: a persistent tap, in a network namespace of its own.

    Attributes:
        netns: Name below `/run/netns`.
        tap: Interface name in that namespace, where the VMM opens it.
        mac: The guest's MAC address.
        fabric: Its name in the fabric, where it goes then; empty if it stays where it is.
        limits: What the host holds the guest to on it; what the VMM does itself is not among it.
    """

    netns: str
    tap: str
    mac: str
    fabric: str = ""
    limits: RateLimits = field(default_factory=RateLimits)


@dataclass(frozen=True, slots=True, kw_only=True)
class MachinePlan:
    """Everything a driver needs to start one incarnation of a VM. All paths are the agent's own.

    Attributes:
        kernel_args: The whole kernel command line.
        run_dir: Existing private directory for this incarnation: sockets, logs, metrics files.
        snapshot: Folder that `Snapshots.snapshot` of the same kind of driver has filled: the guest
            goes on from there instead of booting the kernel. It is created paused; `resume` lets
            it run. Its files must not change as long as the VMM lives.
        track_memory: Remember which pages the guest changes, for diff snapshots; costs it speed.
        metadata: What the guest can read at 169.254.169.254 over its interface, by name. Must not
            be shown. Only with `Ability.METADATA`.
        balloon_mib: Size that the guest's balloon is to take; 0 is no balloon. Only with
            `Ability.BALLOON`. A snapshot brings its own.
        limits: The most that disk and interface may move. Only with `Ability.DISK_LIMITS` and
            `Ability.NET_LIMITS`. A snapshot brings its own.
        uid: User and group, of this VM alone, that the VMM runs as, if its driver can make it so;
            None stays what the agent is.
        group: Control group that the VMM joins before it does anything.
    """

    vm_id: UUID
    incarnation: int
    vcpus: int
    memory_mib: int
    kernel: Path
    kernel_args: str
    initrd: Path | None = None
    disk: Path | None = None
    nic: Nic | None = None
    run_dir: Path
    snapshot: Path | None = None
    track_memory: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)
    balloon_mib: int = 0
    limits: RateLimits = field(default_factory=RateLimits)
    uid: int | None = None
    group: Group | None = None


class Vmm(msgspec.Struct, frozen=True, kw_only=True):
    """A VMM process, found again after an agent restart by pid *and* start time.

    Attributes:
        start_ticks: Field 22 of `/proc/<pid>/stat` (proc(5)): a reused pid has another one.
        run_dir: The incarnation's run directory.
    """

    vm_id: UUID
    incarnation: int
    driver: str
    pid: int
    start_ticks: int
    run_dir: str


class VmmState(StrEnum):
    """What a VMM says of its guest; `GONE` when there is no such process (any more)."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    GONE = "gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCounters:
    """What a VMM itself has counted since it started, in bytes; cumulative, never decreasing.

    A `None` means that the VMM does not know better than the kernel: the sampler then reads
    the tap's counters, or the process's CPU clock.
    """

    disk_read_bytes: int = 0
    disk_write_bytes: int = 0
    net_rx_bytes: int | None = None
    net_tx_bytes: int | None = None
    cpu_ns: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Whether a driver really works here, why, and its version."""

    works: bool
    version: str
    reason: str


class DriverError(Exception):
    """The VMM refused, failed or did not answer in time. The message is fit for an operator."""


class UnreachableError(DriverError):
    """The VMM did not answer in time, or with garbage."""


class Driver(ABC):
    """Lifecycle verbs of one hypervisor.

    All verbs are idempotent, safe to cancel and safe to call again after an agent restart, and
    raise `DriverError` only. Verbs on one VMM are never called concurrently, except `counters`,
    `inspect` and `kill`; verbs on different VMMs are.
    """

    name: str
    simulated: bool = False
    abilities: frozenset[Ability] = frozenset()
    memory_overhead_mib: int = 64
    """What a VMM may need beside the memory of its guest, threads' stacks and page tables too."""

    @abstractmethod
    async def probe_version(self) -> str:
        """The hypervisor's version string, at most 2 s. DriverError if its binary cannot run."""

    @abstractmethod
    async def create(self, plan: MachinePlan) -> Vmm:
        """Spawn the VMM process and configure the machine; the guest does not run yet.

        On failure or cancellation nothing of the process is left. At most 5 s.
        """

    @abstractmethod
    async def boot(self, vmm: Vmm) -> None:
        """Let the guest run. At most 5 s. Does nothing if it runs already."""

    @abstractmethod
    async def shutdown(self, vmm: Vmm) -> None:
        """Ask the guest to stop (ACPI button, Ctrl-Alt-Del). Returns once asked, at most 2 s.

        The VMM process ends when the guest obeys. Does nothing if the VMM is gone.
        """

    @abstractmethod
    async def pause(self, vmm: Vmm) -> None:
        """Stop the vCPUs. At most 2 s. Only with `Ability.PAUSE`."""

    @abstractmethod
    async def resume(self, vmm: Vmm) -> None:
        """Let paused vCPUs go on. At most 2 s. Only with `Ability.PAUSE`."""

    @abstractmethod
    async def kill(self, vmm: Vmm) -> None:
        """End the VMM: freeze the guest, save its last counters, SIGKILL. At most 5 s.

        A VMM that does not answer is killed all the same. When this returns the process is
        gone (or a zombie of ours that `vm_agent.process` will reap), and `counters` still
        answers with the final values.
        """

    @abstractmethod
    async def inspect(self, vmm: Vmm) -> VmmState:
        """What the VMM says of itself, at most 1 s; DriverError if it hangs."""

    @abstractmethod
    async def counters(self, vmm: Vmm) -> DeviceCounters:
        """Current device counters, at most 1 s; the last ones once the VMM is gone.

        Exact after `kill`, and after the guest stopped by itself.
        """

    @abstractmethod
    def exit_reason(self, vmm: Vmm, exit_code: int | None) -> ExitReason:
        """Why the VMM ended. `exit_code` is negative for a signal, None if unknown."""

    @abstractmethod
    async def destroy(self, vmm: Vmm) -> None:
        """Remove what the VMM left in its run directory, and forget it. The VMM is gone."""

    @abstractmethod
    def console(self, run_dir: Path) -> Path:
        """The file that holds the guest's serial output."""

    def tidy(self, vmm: Vmm) -> None:
        """Keep short what the VMM writes beside the console. Called once a second, takes µs."""
        del vmm

    def last_words(self, vmm: Vmm) -> str:
        """The end of what the VMM wrote beside the console, for the log; empty if nothing.

        Valid until `destroy`, also of a VMM that is gone.
        """
        del vmm
        return ""

    async def close(self) -> None:
        """Let go of sockets, tasks and files; the VMMs run on. Any verb may follow."""
        return


class Snapshots(ABC):
    """What a driver with `Ability.SNAPSHOT` has besides."""

    @abstractmethod
    async def snapshot(self, vmm: Vmm, folder: Path, kind: SnapshotKind) -> None:
        """Write the state of a paused guest, its disk excepted, into an existing empty folder.

        `DIFF` only with `Ability.DIFF_SNAPSHOT`: what changed since the VMM's last snapshot, or
        since its start. At most 60 s. On failure or cancellation the guest is as it was, and the
        folder's content is of no use.
        """


class DiffSnapshots(Snapshots):
    """What a driver with `Ability.DIFF_SNAPSHOT` has besides."""

    @abstractmethod
    async def complete(self, folder: Path, base: Path) -> None:
        """Make a diff whole: add to `folder` what only the snapshot before it, `base`, holds.

        On failure or cancellation the folder's content is of no use.
        """
