"""QEMU's microvm machine over QMP: KVM where there is one, TCG where not (QEMU 7.2 and newer).

Counters come from `query-blockstats`: absolute, exact, but gone with the process. So each reading
is saved in the run directory, the guest is stopped before a kill, and a guest that stops by
itself leaves its QEMU paused until the last reading is saved.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from schemas.vms import ExitReason
from vm_agent.drivers.abc import (
    Ability,
    DeviceCounters,
    Driver,
    DriverError,
    MachinePlan,
    Vmm,
    VmmState,
)
from vm_agent.drivers.passing import (
    EXIT_GRACE_S,
    KILLED_MARK,
    alive,
    end_process,
    ends_soon,
    mark_killed,
    was_killed,
)
from vm_agent.drivers.paths import CONSOLE, QMP_SOCKET, console_tail
from vm_agent.drivers.qemu_command import command
from vm_agent.drivers.qmp import QmpSession, QmpUnreachableError
from vm_agent.drivers.saved import DamagedError, SavedNumbers
from vm_agent.process import ProcessId, VmmProcesses

_CREATE_S = 5.0
_CALL_S = 2.0
_INSPECT_S = 1.0
_STATS_S = 0.7
_SOCKET_POLL_S = 0.002
_STATE_FILE = "qemu.state"
_VMM_LOG = "qemu.log"


class _End(IntEnum):
    """How a guest ended, as the state file has it."""

    NOT_YET = 0
    BY_GUEST = 1
    CRASHED = 2


# QAPI's RunState; what is missing here means that the guest stands still.
_STATES = {"prelaunch": VmmState.CREATED, "running": VmmState.RUNNING}
_ENDS = {
    "shutdown": _End.BY_GUEST,
    "guest-panicked": _End.CRASHED,
    "internal-error": _End.CRASHED,
}


@dataclass(slots=True)
class _Session:
    """What is kept for one VMM. Can be made anew at any time."""

    qmp: QmpSession
    saved: SavedNumbers
    read_bytes: int = 0
    write_bytes: int = 0
    end: _End = _End.NOT_YET


class QemuDriver(Driver):
    """One QEMU process per VM.

    Args:
        binary: qemu-system-x86_64; None if there is none, which every verb then says.
        processes: The agent's VMM processes.
    """

    name = "qemu"
    abilities = frozenset({Ability.PAUSE})

    def __init__(self, binary: Path | None, processes: VmmProcesses) -> None:
        self._binary = binary
        self._processes = processes
        self._sessions: dict[ProcessId, _Session] = {}

    async def probe_version(self) -> str:
        """The version of the binary. See `Driver`."""
        return await asyncio.to_thread(self._version)

    async def create(self, plan: MachinePlan) -> Vmm:
        """Spawn QEMU with its vCPUs halted. See `Driver`."""
        argv = command(self._require_binary(), plan)
        _remove(plan.run_dir)
        try:
            process = self._processes.spawn(
                argv,
                cwd=plan.run_dir,
                console=plan.run_dir / _VMM_LOG,
                netns=plan.nic.netns if plan.nic else None,
            )
        except OSError as error:
            _remove(plan.run_dir)
            raise DriverError(f"cannot start {argv[0]}: {error}") from error
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
                await self._wait_for_monitor(vmm)
        except TimeoutError as error:
            await self._abandon(vmm)
            raise QmpUnreachableError(f"qemu was not ready within {_CREATE_S:g} s") from error
        except BaseException:
            await self._abandon(vmm)
            raise
        return vmm

    async def boot(self, vmm: Vmm) -> None:
        """Send `cont`. See `Driver`."""
        match await self.inspect(vmm):
            case VmmState.CREATED:
                await self._execute(vmm, "cont")
            case VmmState.GONE:
                raise DriverError(_epitaph(vmm))
            case VmmState.RUNNING | VmmState.PAUSED:
                return

    async def shutdown(self, vmm: Vmm) -> None:
        """Press the ACPI power button. See `Driver`."""
        if not alive(vmm):
            return
        try:
            await self._execute(vmm, "system_powerdown")
        except QmpUnreachableError:
            if not await ends_soon(vmm):
                raise

    async def pause(self, vmm: Vmm) -> None:
        """Stop the vCPUs. See `Driver`."""
        await self._execute(vmm, "stop")

    async def resume(self, vmm: Vmm) -> None:
        """Let the vCPUs go on. See `Driver`."""
        await self._execute(vmm, "cont")

    async def kill(self, vmm: Vmm) -> None:
        """Stop, read, save, SIGKILL. See `Driver`."""
        if alive(vmm):
            # A QEMU that hangs has nothing more to tell.
            with suppress(DriverError, TimeoutError):
                async with asyncio.timeout(_CALL_S):
                    await self._execute(vmm, "stop")
                    await self._read(vmm, _CALL_S)
            mark_killed(Path(vmm.run_dir))
        await end_process(self._processes, vmm)

    async def inspect(self, vmm: Vmm) -> VmmState:
        """Ask `query-status`. See `Driver`."""
        if not alive(vmm):
            return VmmState.GONE
        session = self._session(vmm)
        try:
            status = await session.qmp.execute("query-status", _INSPECT_S - EXIT_GRACE_S)
        except QmpUnreachableError:
            if await ends_soon(vmm):
                return VmmState.GONE
            raise
        word = status.get("status") if isinstance(status, dict) else None
        if not isinstance(word, str):
            raise QmpUnreachableError(f"qemu describes itself as {status!r:.80}")
        if word in _ENDS:
            await self._settle(vmm, _ENDS[word])
            return VmmState.GONE if await ends_soon(vmm) else VmmState.PAUSED
        return _STATES.get(word, VmmState.PAUSED)

    async def counters(self, vmm: Vmm) -> DeviceCounters:
        """Ask `query-blockstats`; the saved reading once QEMU is gone. See `Driver`."""
        session = self._session(vmm)
        if alive(vmm):
            try:
                await self._read(vmm, _STATS_S)
            except QmpUnreachableError:
                if not await ends_soon(vmm):
                    raise
        return DeviceCounters(
            disk_read_bytes=session.read_bytes, disk_write_bytes=session.write_bytes
        )

    def exit_reason(self, vmm: Vmm, exit_code: int | None) -> ExitReason:
        """QEMU is ended by us in every case, so what counts is what its guest did before."""
        run_dir = Path(vmm.run_dir)
        end = self._session(vmm).end if run_dir.is_dir() else _End.NOT_YET
        match end, exit_code:
            case _End.BY_GUEST, _:
                return ExitReason.GUEST_SHUTDOWN
            case _End.CRASHED, _:
                return ExitReason.CRASHED
            case _, (0 | -9 | -15):
                return ExitReason.KILLED
            case _, None:
                return ExitReason.KILLED if was_killed(run_dir) else ExitReason.UNKNOWN
            case _:
                return ExitReason.CRASHED

    async def destroy(self, vmm: Vmm) -> None:
        """Remove socket, state, logs. See `Driver`."""
        await self._close_session(ProcessId(vmm.pid, vmm.start_ticks))
        _remove(Path(vmm.run_dir))
        self._processes.forget(vmm.pid, vmm.start_ticks)

    def console(self, run_dir: Path) -> Path:
        """The guest's first serial port."""
        return run_dir / CONSOLE

    async def close(self) -> None:
        """Disconnect from all QEMUs. See `Driver`."""
        for process in list(self._sessions):
            await self._close_session(process)

    def _version(self) -> str:
        try:
            done = subprocess.run(
                [str(self._require_binary()), "--version"],
                capture_output=True, stdin=subprocess.DEVNULL, text=True, timeout=2, check=True,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            raise DriverError(f"qemu does not run: {error}") from error
        found = re.search(r"version (\d+(?:\.\d+)*)", done.stdout)
        return found[1] if found else done.stdout.partition("\n")[0]

    def _require_binary(self) -> Path:
        if self._binary is None:
            raise DriverError("there is no qemu-system-x86_64 on PATH")
        return self._binary

    async def _wait_for_monitor(self, vmm: Vmm) -> None:
        while True:
            try:
                await self._execute(vmm, "query-status")
            except QmpUnreachableError:
                if not alive(vmm):
                    raise DriverError(_epitaph(vmm)) from None
                await asyncio.sleep(_SOCKET_POLL_S)
            else:
                return

    async def _abandon(self, vmm: Vmm) -> None:
        """Undo `create`."""
        self._processes.kill(vmm.pid, vmm.start_ticks)
        await self._processes.wait_exit(vmm.pid, vmm.start_ticks)
        await self.destroy(vmm)

    async def _execute(self, vmm: Vmm, command: str) -> Any:
        return await self._session(vmm).qmp.execute(command, _CALL_S)

    async def _read(self, vmm: Vmm, limit_s: float) -> None:
        """Ask for the counters and save them."""
        session = self._session(vmm)
        stats = await session.qmp.execute("query-blockstats", limit_s)
        read_bytes, write_bytes = _sum_of(stats)
        # Two readings may overlap; a total never goes back.
        session.read_bytes = max(session.read_bytes, read_bytes)
        session.write_bytes = max(session.write_bytes, write_bytes)
        session.saved.save(session.read_bytes, session.write_bytes, session.end)

    async def _settle(self, vmm: Vmm, end: _End) -> None:
        """The guest has stopped and QEMU waits: read the last counters, then let it go."""
        session = self._session(vmm)
        session.end = end
        await self._read(vmm, _CALL_S)
        # Its answer may be cut short by its end.
        with suppress(QmpUnreachableError):
            await session.qmp.execute("quit", _CALL_S)

    def _session(self, vmm: Vmm) -> _Session:
        process = ProcessId(vmm.pid, vmm.start_ticks)
        session = self._sessions.get(process)
        if session is not None:
            return session
        run_dir = Path(vmm.run_dir)

        async def on_shutdown(reason: str) -> None:
            if reason.startswith("guest-"):
                await self._settle(vmm, _End.CRASHED if reason == "guest-panic" else _End.BY_GUEST)

        try:
            saved = SavedNumbers(run_dir / _STATE_FILE, 3)
        except OSError as error:
            raise DriverError(f"cannot read the counters of {vmm.vm_id}: {error}") from error
        qmp = QmpSession(run_dir / QMP_SOCKET, f"qemu-{vmm.vm_id}", on_shutdown)
        session = _Session(qmp, saved)
        try:
            numbers = saved.load()
        except DamagedError as error:
            saved.close()
            raise DriverError(f"the saved counters of {vmm.vm_id} are damaged: {error}") from error
        if numbers is not None:
            session.read_bytes, session.write_bytes = numbers[:2]
            session.end = _End(numbers[2])
        self._sessions[process] = session
        return session

    async def _close_session(self, process: ProcessId) -> None:
        if (session := self._sessions.pop(process, None)) is not None:
            await session.qmp.close()
            session.saved.close()


def _sum_of(stats: Any) -> tuple[int, int]:
    """Bytes read and written over all block devices in an answer to `query-blockstats`."""
    try:
        devices = [device["stats"] for device in stats]
        return (
            sum(int(device["rd_bytes"]) for device in devices),
            sum(int(device["wr_bytes"]) for device in devices),
        )
    except (TypeError, KeyError, ValueError) as error:
        raise QmpUnreachableError(f"qemu counts as {stats!r:.80}") from error


def _epitaph(vmm: Vmm) -> str:
    words = console_tail(Path(vmm.run_dir), _VMM_LOG)
    return "qemu ended by itself" + (f": {words}" if words else "")


def _remove(run_dir: Path) -> None:
    for name in (QMP_SOCKET, CONSOLE, _VMM_LOG, _STATE_FILE, KILLED_MARK):
        (run_dir / name).unlink(missing_ok=True)
