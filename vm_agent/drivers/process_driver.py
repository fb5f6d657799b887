"""What drivers share whose VMM is one process, told what to do over a socket in its run directory.

The steps that must not go wrong stand here once: what a failed or cancelled create undoes, when a
VMM counts as ready, how its name is remembered, and what is left when it is gone.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from vm_agent.drivers.abc import (
    Driver,
    DriverError,
    MachinePlan,
    UnreachableError,
    Vmm,
    VmmState,
)
from vm_agent.drivers.passing import KILLED_MARK, alive
from vm_agent.drivers.paths import CONSOLE
from vm_agent.drivers.vmm_log import last_words, trim_log
from vm_agent.process import ProcessId, VmmProcesses

_CREATE_S = 5.0
_VERSION_S = 2
_SOCKET_POLL_S = 0.001
_VERSION = re.compile(r"\d+(?:\.\d+)+")

S = TypeVar("S")


class ProcessDriver(Driver, Generic[S]):
    """A driver with one process per VM, and a session per process that can be made anew.

    Args:
        binary: The executable; None if there is none, which every verb then says.
        processes: The agent's VMM processes.

    Attributes:
        executable: Its usual name on PATH.
        output: File in the run directory for the VMM's own output.
        files: What the VMM and its driver leave in the run directory.
    """

    executable: ClassVar[str]
    output: ClassVar[str] = CONSOLE
    files: ClassVar[tuple[str, ...]] = ()

    def __init__(self, binary: Path | None, processes: VmmProcesses) -> None:
        self._binary = binary
        self._processes = processes
        self._sessions: dict[ProcessId, S] = {}

    async def probe_version(self) -> str:
        """The version that the binary tells. See `Driver`."""
        return await asyncio.to_thread(self._version)

    async def create(self, plan: MachinePlan) -> Vmm:
        """Spawn the process and configure the machine. See `Driver`."""
        try:
            seen = self._prepare(plan)
            process = await self._launch(plan)
        except OSError as error:
            self._remove_files(plan.run_dir)
            raise DriverError(f"cannot start {self.name}: {error}") from error
        except BaseException:
            self._remove_files(plan.run_dir)
            raise
        vmm = Vmm(
            vm_id=plan.vm_id,
            incarnation=plan.incarnation,
            driver=self.name,
            pid=process.pid,
            start_ticks=process.start_ticks,
            run_dir=str(plan.run_dir),
        )
        try:
            async with asyncio.timeout(_CREATE_S):
                await self._configure(vmm, seen)
        except TimeoutError as error:
            await self._abandon(vmm)
            raise UnreachableError(f"{self.name} was not ready within {_CREATE_S:g} s") from error
        except BaseException:
            await self._abandon(vmm)
            raise
        return vmm

    async def boot(self, vmm: Vmm) -> None:
        """Let the guest run. See `Driver`."""
        match await self.inspect(vmm):
            case VmmState.CREATED:
                await self._start(vmm)
            case VmmState.GONE:
                raise DriverError(self._epitaph(vmm))
            case VmmState.RUNNING | VmmState.PAUSED:
                return

    async def destroy(self, vmm: Vmm) -> None:
        """Remove the VMM's files, and forget it. See `Driver`."""
        await self._close_session(ProcessId(vmm.pid, vmm.start_ticks))
        self._remove_files(Path(vmm.run_dir))
        self._processes.forget(vmm.pid, vmm.start_ticks)

    def console(self, run_dir: Path) -> Path:
        """The guest's first serial port. See `Driver`."""
        return run_dir / CONSOLE

    def tidy(self, vmm: Vmm) -> None:
        """Keep the VMM's own log short. See `Driver`."""
        trim_log(self._log_of(Path(vmm.run_dir)))

    def last_words(self, vmm: Vmm) -> str:
        """The last lines of its log. See `Driver`."""
        return last_words(self._log_of(Path(vmm.run_dir)))

    async def close(self) -> None:
        """Close all sessions. See `Driver`."""
        for process in list(self._sessions):
            await self._close_session(process)

    # What each kind of VMM does in its own way.

    @abstractmethod
    def _argv(self, plan: MachinePlan) -> Sequence[str]:
        """The command, to be run in the run directory."""

    @abstractmethod
    async def _configure(self, vmm: Vmm, plan: MachinePlan) -> None:
        """Wait until the VMM answers, and tell it what machine to make: the plan as it sees it."""

    @abstractmethod
    async def _start(self, vmm: Vmm) -> None:
        """Let a guest run that has not run yet."""

    @abstractmethod
    def _open_session(self, vmm: Vmm) -> S:
        """A session for a VMM, alive or dead. OSError if its files cannot be had."""

    @abstractmethod
    def _log_of(self, run_dir: Path) -> Path:
        """Where the VMM writes of its own accord; never the guest's console."""

    @abstractmethod
    async def _end_session(self, session: S) -> None:
        """Let go of what a session holds."""

    def _prepare(self, plan: MachinePlan) -> MachinePlan:
        """Make what the VMM expects to find; the plan as the VMM will see it."""
        return plan

    async def _launch(self, plan: MachinePlan) -> ProcessId:
        """Start the process, confined as planned. On failure or cancellation none is left."""
        return self._processes.spawn(
            self._argv(plan),
            cwd=plan.run_dir,
            console=plan.run_dir / self.output,
            netns=plan.nic.netns if plan.nic else None,
            doors=plan.group.doors if plan.group else (),
            env=self._environment(),
        )

    def _environment(self) -> Mapping[str, str] | None:
        """The VMM's whole environment; None for the agent's own."""
        return None

    # What they all do alike.

    def _require_binary(self) -> Path:
        if self._binary is None:
            raise DriverError(f"there is no {self.executable} on PATH")
        return self._binary

    def _version(self) -> str:
        try:
            done = subprocess.run(
                [str(self._require_binary()), "--version"],
                capture_output=True, stdin=subprocess.DEVNULL, text=True, timeout=_VERSION_S,
                check=True,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            raise DriverError(f"{self.executable} does not run: {error}") from error
        found = _VERSION.search(done.stdout)
        return found[0] if found else done.stdout.partition("\n")[0].strip()

    async def _until_answered(self, vmm: Vmm, ask: Callable[[], Awaitable[object]]) -> None:
        """Ask until the VMM answers; the caller sets the time limit."""
        while True:
            try:
                await ask()
            except UnreachableError:
                if not alive(vmm):
                    raise DriverError(self._epitaph(vmm)) from None
                await asyncio.sleep(_SOCKET_POLL_S)
            else:
                return

    async def _abandon(self, vmm: Vmm) -> None:
        """Undo `create`."""
        self._processes.kill(vmm.pid, vmm.start_ticks)
        await self._processes.wait_exit(vmm.pid, vmm.start_ticks)
        await self.destroy(vmm)

    def _session(self, vmm: Vmm) -> S:
        process = ProcessId(vmm.pid, vmm.start_ticks)
        session = self._sessions.get(process)
        if session is None:
            try:
                session = self._sessions[process] = self._open_session(vmm)
            except OSError as error:
                raise DriverError(f"cannot read the counters of {vmm.vm_id}: {error}") from error
        return session

    async def _close_session(self, process: ProcessId) -> None:
        if (session := self._sessions.pop(process, None)) is not None:
            await self._end_session(session)

    def _epitaph(self, vmm: Vmm) -> str:
        words = self.last_words(vmm) or last_words(Path(vmm.run_dir) / self.output)
        return f"{self.name} ended by itself" + (f": {words}" if words else "")

    def _remove_files(self, run_dir: Path) -> None:
        for name in (CONSOLE, self.output, KILLED_MARK, *self.files):
            (run_dir / name).unlink(missing_ok=True)
