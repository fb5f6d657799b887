"""QEMU's microvm machine over QMP: KVM where there is one, else TCG (QEMU 7.2 and newer).

Counters come from `query-blockstats`: absolute, exact, but gone with the process. So each reading
is saved in the run directory, the guest is stopped before a kill, and a guest that stops by
itself leaves its QEMU paused until the last reading is saved.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from schemas.vms import ExitReason
from vm_agent.drivers.abc import (
    Ability,
    DeviceCounters,
    DriverError,
    MachinePlan,
    UnreachableError,
    Vmm,
    VmmState,
)
from vm_agent.drivers.passing import (
    EXIT_GRACE_S,
    alive,
    end_process,
    ends_soon,
    mark_killed,
    was_killed,
)
from vm_agent.drivers.paths import QMP_SOCKET
from vm_agent.drivers.process_driver import ProcessDriver
from vm_agent.drivers.qemu_command import command
from vm_agent.drivers.qmp import QmpSession
from vm_agent.drivers.saved import DamagedError, SavedNumbers
from vm_agent.process import VmmProcesses

_CALL_S = 2.0
_INSPECT_S = 1.0
_STATS_S = 0.7
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


class QemuDriver(ProcessDriver[_Session]):
    """One QEMU process per VM.

    Args:
        binary: The executable; None if there is none, which every verb then says.
        processes: The agent's VMM processes.
        accel: Accelerators, best first: `kvm:tcg`, or one of them only.
    """

    name = "qemu"
    executable = "qemu-system-x86_64"
    output = _VMM_LOG
    files = (QMP_SOCKET, _STATE_FILE)
    abilities = frozenset({Ability.PAUSE, Ability.DISK_LIMITS})
    memory_overhead_mib = 1280
    """Without KVM its translated code may grow to 1 GiB."""

    def __init__(
        self, binary: Path | None, processes: VmmProcesses, *, accel: str = "kvm:tcg"
    ) -> None:
        super().__init__(binary, processes)
        self._accel = accel

    async def shutdown(self, vmm: Vmm) -> None:
        """Press the ACPI power button. See `Driver`."""
        if not alive(vmm):
            return
        try:
            await self._execute(vmm, "system_powerdown")
        except UnreachableError:
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
        except UnreachableError:
            if await ends_soon(vmm):
                return VmmState.GONE
            raise
        word = status.get("status") if isinstance(status, dict) else None
        if not isinstance(word, str):
            raise UnreachableError(f"qemu describes itself as {status!r:.80}")
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
            except UnreachableError:
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

    def _argv(self, plan: MachinePlan) -> Sequence[str]:
        return command(self._require_binary(), plan, self._accel)

    async def _configure(self, vmm: Vmm, plan: MachinePlan) -> None:
        # The command line has said it all.
        del plan
        await self._until_answered(vmm, lambda: self._execute(vmm, "query-status"))

    async def _start(self, vmm: Vmm) -> None:
        await self._execute(vmm, "cont")

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
        with suppress(UnreachableError):
            await session.qmp.execute("quit", _CALL_S)

    def _open_session(self, vmm: Vmm) -> _Session:
        run_dir = Path(vmm.run_dir)

        async def on_shutdown(reason: str) -> None:
            if reason.startswith("guest-"):
                await self._settle(vmm, _End.CRASHED if reason == "guest-panic" else _End.BY_GUEST)

        saved = SavedNumbers(run_dir / _STATE_FILE, 3)
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
        return session

    def _log_of(self, run_dir: Path) -> Path:
        return run_dir / _VMM_LOG

    async def _end_session(self, session: _Session) -> None:
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
        raise UnreachableError(f"qemu counts as {stats!r:.80}") from error
