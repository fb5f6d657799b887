"""VMM processes: spawned to outlive the agent, watched by pidfd, billed to the last nanosecond.

A VMM is detached from its agent: a session of its own, no inherited pipes, its output in a file.
An agent that was killed finds it again by pid *and* start time. A process that ended keeps its
CPU clock as long as it is a zombie, so an exit is handled in this order: the pidfd signals, the
clock is read, only then the zombie is reaped. Nothing here uses asyncio's child watcher.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vm_agent.namespace import NETNS_DIR

_ENTER = """n=$1; shift
while [ "$n" -gt 0 ]; do echo 0 > "$1" || exit 126; shift; n=$((n - 1)); done
exec "$@\""""
"""Shell: writes 0, which means itself, into that many files, then becomes the command."""

_PR_SET_CHILD_SUBREAPER = 36
"""linux/prctl.h, see PR_SET_CHILD_SUBREAPER(2const)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitStatus:
    """How a process ended.

    Attributes:
        exit_code: As `subprocess` has it: negative for a signal. None if it was no child of
            this agent (one adopted after a restart): the kernel tells only the parent.
        cpu_ns: All CPU time the process ever used, or None if it had been reaped already.
    """

    exit_code: int | None
    cpu_ns: int | None


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process for good: a reused pid has another start time."""

    pid: int
    start_ticks: int


def start_ticks(pid: int) -> int | None:
    """Field 22 of `/proc/<pid>/stat` (proc(5)), zombies included; None without such a process."""
    fields = _stat_fields(pid)
    return None if fields is None else int(fields[19])


def is_alive(pid: int, ticks: int) -> bool:
    """Whether that very process still runs. A zombie does not."""
    fields = _stat_fields(pid)
    return fields is not None and int(fields[19]) == ticks and fields[0] not in {b"Z", b"X"}


def _stat_fields(pid: int) -> list[bytes] | None:
    """The fields of `/proc/<pid>/stat` from the third (state) on."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the command in parentheses and may itself hold any character.
    return stat[stat.rindex(b")") + 2 :].split()


def cpu_ns(pid: int) -> int:
    """CPU time of all threads of a process so far, in ns; exact, and 0.6 µs to read.

    The clock id is the kernel's own encoding of a process clock (clock_getcpuclockid(3)). It
    answers for a zombie too, with the final value.

    Raises:
        ProcessLookupError: There is no such process (any more).
    """
    try:
        return time.clock_gettime_ns((~pid << 3) | 2)
    except OSError as error:
        raise ProcessLookupError(f"process {pid} has no CPU clock") from error


class VmmProcesses:
    """Every VMM process this agent spawned or adopted; one instance per agent.

    Zombies of our own are reaped by `wait_exit`, and their status is kept until `forget`, so
    that more than one may wait for an exit, before or after it.
    """

    def __init__(self) -> None:
        self._children: dict[ProcessId, subprocess.Popen[bytes]] = {}
        self._orphans: set[ProcessId] = set()
        self._ended: dict[ProcessId, ExitStatus] = {}

    def spawn(
        self,
        argv: Sequence[str],
        *,
        cwd: Path,
        console: Path,
        netns: str | None = None,
        doors: Sequence[str] = (),
        uid: int | None = None,
        groups: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
    ) -> ProcessId:
        """Start a process that survives this one.

        Everything that confines it is done by small programs that replace themselves by the next
        one, so the pid stays, and no code of ours runs between fork and exec.

        Args:
            argv: The command; its first word is an absolute path or found on PATH.
            cwd: Its working directory.
            console: Where stdout and stderr are appended to. See `vm_agent.consoles`.
            netns: Name of the network namespace to run in.
            doors: Files by which it enters its control groups, before anything else.
            uid: User and group to run as, without any privilege; None stays what this process is.
            groups: Groups that `uid` is in besides its own.
            env: The whole environment; None means this process's own.

        Raises:
            OSError: The command cannot be started.
        """
        command = list(argv)
        if uid is not None:
            command = [*_without_privileges(uid, groups), *command]
        if netns is not None:
            command = ["nsenter", f"--net={NETNS_DIR / netns}", "--", *command]
        if doors:
            command = ["sh", "-c", _ENTER, "sh", str(len(doors)), *doors, *command]
        with console.open("ab") as output:
            child = subprocess.Popen(
                command,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=None if env is None else dict(env),
            )
        ticks = start_ticks(child.pid)
        if ticks is None:
            raise RuntimeError(f"child {child.pid} vanished without being reaped")
        process = ProcessId(child.pid, ticks)
        self._children[process] = child
        return process

    def expect_orphans(self) -> None:
        """Become the parent of those whose own parent, a child of this process, ends.

        A jailer forks its VMM and exits; this way the VMM's exit code still comes here.
        """
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")

    def take_over(self, pid: int) -> ProcessId:
        """Care for a process that a child of this one has left behind, as if it were spawned here.

        Raises:
            ProcessLookupError: It is gone, or has another parent.
        """
        fields = _stat_fields(pid)
        if fields is None or int(fields[1]) != os.getpid():
            raise ProcessLookupError(f"process {pid} is no child of this one")
        process = ProcessId(pid, int(fields[19]))
        self._orphans.add(process)
        return process

    def kill(self, pid: int, ticks: int) -> None:
        """Send SIGKILL to that very process; nothing happens if it is gone."""
        self.send(pid, ticks, signal.SIGKILL)

    def send(self, pid: int, ticks: int, number: signal.Signals) -> None:
        """Send a signal to that very process; nothing happens if it is gone.

        Between check and signal a pid cannot be reused unnoticed: the pidfd is opened first.
        """
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            if is_alive(pid, ticks):
                signal.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:
            return
        finally:
            os.close(pidfd)

    async def wait_exit(self, pid: int, ticks: int) -> ExitStatus:
        """Wait until a process has ended, child or not; reaps it if it is ours.

        Safe to cancel and to call again, also for a process that ended long ago.
        """
        process = ProcessId(pid, ticks)
        if process not in self._ended:
            await wait_end(pid, ticks)
        return self._settle(process)

    def exit_status(self, pid: int, ticks: int) -> ExitStatus | None:
        """What `wait_exit` would answer at once, None while the process runs."""
        if is_alive(pid, ticks):
            return None
        return self._settle(ProcessId(pid, ticks))

    def forget(self, pid: int, ticks: int) -> None:
        """Drop the kept status of a process that has ended, reaping it if need be."""
        process = ProcessId(pid, ticks)
        if not is_alive(pid, ticks):
            self._settle(process)
        self._ended.pop(process, None)

    def _settle(self, process: ProcessId) -> ExitStatus:
        """Read the clock of an ended process, reap it, remember both."""
        if (known := self._ended.get(process)) is not None:
            return known
        used_ns: int | None = None
        try:
            used_ns = cpu_ns(process.pid)
        except ProcessLookupError:
            used_ns = None
        if start_ticks(process.pid) != process.start_ticks:
            used_ns = None  # reaped, perhaps even replaced, while the clock was read
        code = self._reap(process)
        status = ExitStatus(exit_code=code, cpu_ns=used_ns)
        if code is not None:
            self._ended[process] = status
        return status

    def _reap(self, process: ProcessId) -> int | None:
        """Take the exit code of a child, or of one taken over, that has ended."""
        if (child := self._children.pop(process, None)) is not None:
            return child.wait()
        if process in self._orphans:
            self._orphans.discard(process)
            with suppress(ChildProcessError):
                return os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1])
        return None


def _without_privileges(uid: int, groups: Sequence[int]) -> list[str]:
    others = f"--groups={','.join(map(str, groups))}" if groups else "--clear-groups"
    return [
        "setpriv", f"--reuid={uid}", f"--regid={uid}", others, "--no-new-privs",
        "--inh-caps=-all", "--bounding-set=-all", "--",
    ]  # fmt: skip


async def wait_end(pid: int, ticks: int) -> None:
    """Wait until a process has ended: a zombie or gone. Does not reap it."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    try:
        if not is_alive(pid, ticks):
            return
        loop.add_reader(pidfd, _resolve, ended)
        try:
            await ended
        finally:
            loop.remove_reader(pidfd)
    finally:
        os.close(pidfd)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
