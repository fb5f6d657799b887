"""A control group per VM: limits, the last word on CPU time, and the list of who belongs to whom.

Version 1 and version 2 hierarchies, also mixed, as the host has them mounted: per controller the
one that offers it. All groups of an agent lie below one parent, `decisec-<identity>`, so a
process in there without a record is a stray, whatever it calls itself.

Sources: the kernel's `admin-guide/cgroup-v1` and `admin-guide/cgroup-v2`.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from schemas.units import MIB

CONTROLLERS = ("cpu", "cpuacct", "memory", "pids")
PREFIX = "decisec-"

_MOUNTS = Path("/proc/self/mountinfo")
_PROCS = "cgroup.procs"
_TASKS = "tasks"
_PERIOD_US = 100_000
_SHARES_PER_VCPU = 1024
_WEIGHT_PER_VCPU = 100
_GUEST_SHARES_PER_CPU = 512
"""All guests together against one busy thread of the host, as the agent's sampler is one: a third
of each CPU at worst. What the host leaves idle is theirs anyway."""
_NS_PER_US = 1000
_END_S = 2.0
_RETRY_S = 0.002


class CgroupError(Exception):
    """The kernel refuses a group. The message is fit for an operator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one VMM may take.

    Attributes:
        cpus: Whole CPUs, as a quota; their number is its weight against other VMs too.
        memory_bytes: Guest memory and what the VMM itself needs; page cache gives way first.
        tasks: Processes and threads.
    """

    cpus: int
    memory_bytes: int
    tasks: int

    def settings(self, version: int) -> Mapping[str, Mapping[str, str]]:
        """File names and values by controller."""
        memory = str(self.memory_bytes)
        if version == 1:
            return {
                "cpu": {
                    "cpu.shares": str(_SHARES_PER_VCPU * self.cpus),
                    "cpu.cfs_period_us": str(_PERIOD_US),
                    "cpu.cfs_quota_us": str(_PERIOD_US * self.cpus),
                },
                "memory": {"memory.limit_in_bytes": memory},
                "pids": {"pids.max": str(self.tasks)},
            }
        return {
            "cpu": {
                "cpu.weight": str(min(10_000, _WEIGHT_PER_VCPU * self.cpus)),
                "cpu.max": f"{_PERIOD_US * self.cpus} {_PERIOD_US}",
            },
            "memory": {"memory.max": memory},
            "pids": {"pids.max": str(self.tasks)},
        }


@dataclass(frozen=True, slots=True)
class Group:
    """One VM's group.

    Attributes:
        name: Below the agent's parent group.
        folders: Its directories, one per hierarchy.
    """

    name: str
    folders: tuple[Path, ...]

    @property
    def doors(self) -> tuple[str, ...]:
        """Files that a process of one thread writes 0 into, to become a member.

        Those for threads, where there are such (version 1): to move a process by its pid, or with
        all its threads, the kernel waits some 10 ms until nobody forks.
        """
        return tuple(str(_door(folder)) for folder in self.folders)

    def pids(self) -> set[int]:
        """Its members, zombies excepted."""
        found: set[int] = set()
        for folder in self.folders:
            with suppress(OSError):
                found.update(map(int, (folder / _PROCS).read_text().split()))
        return found


def _door(folder: Path) -> Path:
    by_thread = folder / _TASKS
    return by_thread if by_thread.exists() else folder / _PROCS


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One mounted hierarchy and the controllers that are used of it."""

    mount: Path
    version: int
    controllers: frozenset[str]


def hierarchies(mounts: str) -> list[Hierarchy]:
    """The hierarchies that offer the controllers, from the text of `/proc/self/mountinfo`."""
    found: list[Hierarchy] = []
    second: Path | None = None
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.partition(" ")
        mount = Path(left.split()[4].replace("\\040", " "))
        if kind == "cgroup":
            offered = frozenset(options.split()[-1].split(",")) & frozenset(CONTROLLERS)
            taken = frozenset().union(*(h.controllers for h in found))
            if offered - taken:
                found.append(Hierarchy(mount, 1, offered - taken))
        elif kind == "cgroup2" and second is None:
            second = mount
    if second is not None:
        with suppress(OSError):
            offered = frozenset((second / "cgroup.controllers").read_text().split())
            if "cpu" in offered:
                # Version 2 counts CPU time in every group.
                offered |= {"cpuacct"}
            if mine := offered & frozenset(CONTROLLERS):
                found.append(Hierarchy(second, 2, mine))
    return found


class Cgroups:
    """The groups of one agent.

    Every call does blocking I/O of about a millisecond.

    Args:
        identity: Tells the groups of this agent from those of another on the same host.
        found: The hierarchies to use; None for those that are mounted.

    Attributes:
        unavailable: Why there are no groups here; None where there are. Without them VMs run
            without limits, and `create` answers None.
    """

    def __init__(self, identity: str, found: Iterable[Hierarchy] | None = None) -> None:
        self._parent = PREFIX + identity
        self._hierarchies = list(hierarchies(_MOUNTS.read_text()) if found is None else found)
        self.unavailable = self._prepare()

    def create(self, name: str, limits: Limits) -> Group | None:
        """Make a group, with all its counters at zero; members of one left over are ended.

        Raises:
            CgroupError: The kernel refuses.
        """
        if self.unavailable is not None:
            return None
        self.destroy(name)
        group = self._group(name)
        try:
            for hierarchy, folder in zip(self._hierarchies, group.folders, strict=True):
                folder.mkdir(parents=True)
                for controller, files in limits.settings(hierarchy.version).items():
                    if controller in hierarchy.controllers:
                        for file, value in files.items():
                            (folder / file).write_text(value)
        except OSError as error:
            self.destroy(name)
            raise CgroupError(f"cannot make control group {name}: {error}") from error
        return group

    def group(self, name: str) -> Group | None:
        """A group that is there."""
        group = self._group(name)
        return group if any(folder.is_dir() for folder in group.folders) else None

    def names(self) -> list[str]:
        """Every group that an agent of this identity made and nobody destroyed."""
        found: set[str] = set()
        for hierarchy in self._hierarchies:
            parent = hierarchy.mount / self._parent
            with suppress(OSError):
                found.update(path.name for path in parent.iterdir() if path.is_dir())
        return sorted(found)

    def cpu_ns(self, name: str) -> int | None:
        """CPU time of all that ever ran in a group; answers until it is destroyed.

        Version 1 counts nanoseconds, version 2 microseconds.
        """
        for hierarchy, folder in zip(self._hierarchies, self._group(name).folders, strict=True):
            if "cpuacct" not in hierarchy.controllers:
                continue
            with suppress(OSError):
                if hierarchy.version == 1:
                    return int((folder / "cpuacct.usage").read_text())
                return _keyed(folder / "cpu.stat").get("usage_usec", 0) * _NS_PER_US
        return None

    def oom_kills(self, name: str) -> int:
        """How many of its members the kernel killed for want of memory."""
        for hierarchy, folder in zip(self._hierarchies, self._group(name).folders, strict=True):
            if "memory" in hierarchy.controllers:
                file = "memory.oom_control" if hierarchy.version == 1 else "memory.events"
                with suppress(OSError):
                    return _keyed(folder / file).get("oom_kill", 0)
        return 0

    def destroy(self, name: str) -> None:
        """End what is in a group, and remove it. Nothing if it is gone.

        Raises:
            CgroupError: Something in it does not die.
        """
        group = self.group(name)
        if group is None:
            return
        end = time.monotonic() + _END_S
        while not _remove(group.folders):
            for pid in group.pids():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > end:
                raise CgroupError(f"control group {name} has members that do not die")
            time.sleep(_RETRY_S)

    def close(self) -> None:
        """Remove the parent if no group is left in it."""
        for hierarchy in self._hierarchies:
            with suppress(OSError):
                (hierarchy.mount / self._parent).rmdir()

    def _group(self, name: str) -> Group:
        folders = tuple(h.mount / self._parent / name for h in self._hierarchies)
        return Group(name, folders)

    def _prepare(self) -> str | None:
        """Make the parent groups; the reason if that cannot be."""
        if not self._hierarchies:
            return "no control group hierarchy with cpu, memory or pids is mounted"
        cpus = os.cpu_count() or 1
        try:
            for hierarchy in self._hierarchies:
                parent = hierarchy.mount / self._parent
                wanted = sorted(hierarchy.controllers - {"cpuacct"})
                if hierarchy.version == 2:
                    _enable(hierarchy.mount, wanted)
                parent.mkdir(exist_ok=True)
                if hierarchy.version == 2:
                    _enable(parent, wanted)
                if "cpu" in hierarchy.controllers:
                    if hierarchy.version == 1:
                        shares = _GUEST_SHARES_PER_CPU * cpus
                        (parent / "cpu.shares").write_text(str(shares))
                    else:
                        weight = _GUEST_SHARES_PER_CPU * _WEIGHT_PER_VCPU // _SHARES_PER_VCPU * cpus
                        (parent / "cpu.weight").write_text(str(min(10_000, weight)))
        except OSError as error:
            return f"control groups cannot be made: {error}"
        return None


def memory_limit(memory_mib: int, overhead_mib: int) -> int:
    """What a VMM may take, in bytes: its guest's memory and its own."""
    return (memory_mib + overhead_mib) * MIB


def _enable(folder: Path, controllers: list[str]) -> None:
    have = (folder / "cgroup.subtree_control").read_text().split()
    if missing := [f"+{name}" for name in controllers if name not in have]:
        (folder / "cgroup.subtree_control").write_text(" ".join(missing))


def _remove(folders: Iterable[Path]) -> bool:
    """Whether all of these groups are gone now."""
    gone = True
    for folder in folders:
        try:
            folder.rmdir()
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno not in {errno.EBUSY, errno.ENOTEMPTY}:
                raise CgroupError(f"{folder}: cannot be removed: {error.strerror}") from error
            gone = False
    return gone


def _keyed(file: Path) -> dict[str, int]:
    """A file of lines with a name and a number."""
    rows = (line.split() for line in file.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2}
