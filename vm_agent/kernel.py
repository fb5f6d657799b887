"""The ports of `vm_agent.ports` on a real Linux host."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from vm_agent.cgroups import Cgroups
from vm_agent.drivers.abc import Nic, Vmm
from vm_agent.drivers.jail import ROOT_LINK
from vm_agent.drivers.paths import API_SOCKET, QMP_SOCKET
from vm_agent.metering import Sources
from vm_agent.network.connections import Connections, FabricCounters
from vm_agent.network.taps import NetworkError, TapCounters
from vm_agent.ports import Reading
from vm_agent.process import ExitStatus, VmmProcesses, cpu_ns, is_alive, start_ticks

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_BINDS_SOCKET = re.compile(
    rf"\0--api-sock(?:\0|et\0path=){re.escape(API_SOCKET)}\0"
    rf"|,path={re.escape(QMP_SOCKET)},server=on".encode()
)
"""What the drivers tell a VMM to listen on, in its command line (proc(5): NUL separated)."""


class KernelSources:
    """Process clock, statm and tap of one VMM, through descriptors that stay open.

    Args:
        vmm: Whose.
        tap: Counters of its interface.
        settled_cpu: Its CPU time once its clock is gone.
    """

    def __init__(
        self, vmm: Vmm, tap: TapCounters | FabricCounters | None, settled_cpu: Reading
    ) -> None:
        self._pid = vmm.pid
        self._tap = tap
        self._settled_cpu = settled_cpu
        self._statm = -1
        with suppress(FileNotFoundError, ProcessLookupError):
            self._statm = os.open(f"/proc/{vmm.pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
        # The descriptor stays with the process it was opened for; the clock goes by number,
        # so the sampler stops asking once the process is known to have ended.
        if start_ticks(vmm.pid) != vmm.start_ticks:
            self._pid = 0

    def cpu_ns(self) -> int | None:
        """CPU clock of the process; None once it is reaped."""
        if self._pid <= 0:
            return None
        try:
            return cpu_ns(self._pid)
        except ProcessLookupError:
            self._pid = 0
            return None

    def settled_cpu_ns(self) -> int | None:
        """CPU time by the control group, which outlives the process."""
        return self._settled_cpu()

    def mem_bytes(self) -> int | None:
        """Resident set of the process; None once it is gone."""
        if self._statm < 0:
            return None
        try:
            fields = os.pread(self._statm, 128, 0).split()
        except ProcessLookupError:
            return None
        return int(fields[1]) * _PAGE_BYTES

    def net_bytes(self) -> tuple[int, int] | None:
        """Bytes that the guest received and sent; None once the tap is gone."""
        if self._tap is None:
            return None
        try:
            return self._tap.read()
        except NetworkError:
            return None

    def close(self) -> None:
        """Close the descriptors."""
        self._pid = 0
        if self._statm >= 0:
            os.close(self._statm)
            self._statm = -1
        if self._tap is not None:
            self._tap.close()
            self._tap = None


class LinuxProcesses:
    """`Processes` on the kernel this agent runs on.

    Args:
        processes: The agent's VMM processes.
        groups: Where its VMMs are; a stray is one that is there and that nobody knows.
        connections: Their interfaces.
    """

    def __init__(
        self,
        processes: VmmProcesses,
        groups: Cgroups | None = None,
        connections: Connections | None = None,
    ) -> None:
        self._processes = processes
        self._connections = connections or Connections()
        self._groups = groups
        self._boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    def boottime_ns(self) -> int:
        """CLOCK_BOOTTIME: goes on while the host is suspended."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def boot_id(self) -> str:
        """The host's current boot."""
        return self._boot_id

    def is_alive(self, vmm: Vmm) -> bool:
        """Whether that very process runs."""
        return is_alive(vmm.pid, vmm.start_ticks)

    def cpu_ns(self, vmm: Vmm) -> int | None:
        """CPU time of a VMM by its own clock; None once it is gone."""
        try:
            return cpu_ns(vmm.pid) if self.is_alive(vmm) else None
        except ProcessLookupError:
            return None

    def kill(self, vmm: Vmm) -> None:
        """SIGKILL that very process; nothing happens if it is gone."""
        self._processes.kill(vmm.pid, vmm.start_ticks)

    async def wait_exit(self, vmm: Vmm) -> ExitStatus:
        """Return once the process has ended."""
        return await self._processes.wait_exit(vmm.pid, vmm.start_ticks)

    async def sources(self, vmm: Vmm, nic: Nic | None, settled_cpu: Reading) -> Sources:
        """The kernel's counters of a VMM; those of a tap that is gone stay silent."""
        tap = None if nic is None else await self._connections.counters(nic)
        return KernelSources(vmm, tap, settled_cpu)

    def end_strays(self, run_root: Path, known: frozenset[int]) -> list[int]:
        """End VMMs that no record knows; returns their pids.

        An agent that is killed between spawning a VMM and recording it leaves such a one. They
        are told by their control group, and where there is none by the place they work in.
        """
        found = set(_working_below(run_root))
        if self._groups is not None:
            for name in self._groups.names():
                if (group := self._groups.group(name)) is not None:
                    found |= group.pids()
        strays = sorted(found - known)
        for pid in strays:
            ticks = start_ticks(pid)
            if ticks is not None:
                self._processes.kill(pid, ticks)
        return strays


def _working_below(root: Path) -> Iterator[int]:
    """Processes that work or are jailed in a run directory below `root`, and bind a socket there.

    The socket, so that somebody who reads a console file there is left in peace.
    """
    place = re.compile(
        re.escape(os.fsencode(root.resolve())) + rb"/(?:[0-9a-f]{32}-[0-9]+|probe-[^/]+)(?:/root)?"
        # What the kernel adds when the directory is gone.
        rb"(?: \(deleted\))?"
    )
    jails = {_identity(link) for link in root.glob(f"*/{ROOT_LINK}")} - {None}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            line = (folder / "cmdline").read_bytes()
            if not _BINDS_SOCKET.search(line):
                continue
            where = os.fsencode((folder / "cwd").readlink())
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        # From a jail the kernel tells "/", but what is there is still the jail's own root.
        if place.fullmatch(where) or (jails and _identity(folder / "root") in jails):
            yield int(folder.name)


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of what a path leads to."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
