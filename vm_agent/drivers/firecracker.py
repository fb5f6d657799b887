"""Firecracker over its API socket, unjailed (API version 1.12; the parts used are in 1.16 too).

The block counters come from `FlushMetrics` and the metrics file, so a stop is always: pause,
flush, read, SIGKILL; a signal alone would lose what happened since the last flush.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from schemas.vms import ExitReason
from vm_agent.drivers import firecracker_exit as exit_of
from vm_agent.drivers.abc import (
    Ability,
    DeviceCounters,
    Driver,
    DriverError,
    MachinePlan,
    Vmm,
    VmmState,
)
from vm_agent.drivers.firecracker_machine import requests
from vm_agent.drivers.metrics_file import MetricsFile, MetricsTotals, metrics_path
from vm_agent.drivers.passing import (
    EXIT_GRACE_S,
    KILLED_MARK,
    alive,
    end_process,
    ends_soon,
    mark_killed,
    was_killed,
)
from vm_agent.drivers.paths import API_SOCKET, CONSOLE, console_tail
from vm_agent.drivers.unix_http import ProtocolError, UnixHttpConnection
from vm_agent.process import ProcessId, VmmProcesses

_log = structlog.get_logger("decisec.firecracker")

_CREATE_S = 5.0
_BOOT_S = 5.0
_CALL_S = 2.0
_INSPECT_S = 1.0
_FLUSH_S = 0.5
_SAVE_S = 2.0
_SOCKET_POLL_S = 0.001

_FLUSH = msgspec.json.encode({"action_type": "FlushMetrics"})
_encode = msgspec.json.encode


class RefusedError(DriverError):
    """The VMM answered with an error.

    Attributes:
        status: HTTP status code.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class UnreachableError(DriverError):
    """The VMM did not answer, or with garbage."""


class _Fault(msgspec.Struct):
    fault_message: str = ""


class _Instance(msgspec.Struct):
    state: str


_decode_fault = msgspec.json.Decoder(_Fault).decode
_decode_instance = msgspec.json.Decoder(_Instance).decode
_STATES = {
    "Not started": VmmState.CREATED,
    "Running": VmmState.RUNNING,
    "Paused": VmmState.PAUSED,
}


@dataclass(slots=True)
class _Session:
    """What is kept open for one VMM. Can be made anew at any time."""

    api: UnixHttpConnection
    metrics: MetricsFile


class FirecrackerDriver(Driver):
    """One unjailed Firecracker process per VM.

    Args:
        binary: The firecracker executable; None if there is none, which every verb then says.
        processes: The agent's VMM processes.
    """

    name = "firecracker"
    abilities = frozenset({Ability.PAUSE})

    def __init__(self, binary: Path | None, processes: VmmProcesses) -> None:
        self._binary = binary
        self._processes = processes
        self._sessions: dict[ProcessId, _Session] = {}

    async def probe_version(self) -> str:
        """The version of the binary. See `Driver`."""
        return await asyncio.to_thread(self._version)

    async def create(self, plan: MachinePlan) -> Vmm:
        """Spawn Firecracker and configure the machine. See `Driver`."""
        argv = self._argv(plan)
        _remove(plan.run_dir)
        metrics_path(plan.run_dir).touch(mode=0o600)
        try:
            process = self._processes.spawn(
                argv,
                cwd=plan.run_dir,
                console=plan.run_dir / CONSOLE,
                netns=plan.nic.netns if plan.nic else None,
                env=self._environment(),
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
                await self._wait_for_api(vmm)
                for path, body in requests(plan):
                    await self._call(vmm, "PUT", path, _encode(body), _CALL_S)
        except TimeoutError as error:
            await self._abandon(vmm)
            raise UnreachableError(f"{self.name} was not ready within {_CREATE_S:g} s") from error
        except BaseException:
            await self._abandon(vmm)
            raise
        return vmm

    async def boot(self, vmm: Vmm) -> None:
        """Send `InstanceStart`. See `Driver`."""
        match await self.inspect(vmm):
            case VmmState.CREATED:
                await self._action(vmm, "InstanceStart", _BOOT_S)
            case VmmState.GONE:
                raise DriverError(self._epitaph(vmm))
            case VmmState.RUNNING | VmmState.PAUSED:
                return

    async def shutdown(self, vmm: Vmm) -> None:
        """Send `SendCtrlAltDel`. See `Driver`."""
        if not alive(vmm):
            return
        try:
            await self._action(vmm, "SendCtrlAltDel", _CALL_S)
        except UnreachableError:
            if not await self._ends(vmm):
                raise

    async def pause(self, vmm: Vmm) -> None:
        """Stop the vCPUs. See `Driver`."""
        await self._set_state(vmm, "Paused", _CALL_S)

    async def resume(self, vmm: Vmm) -> None:
        """Let the vCPUs go on. See `Driver`."""
        await self._set_state(vmm, "Resumed", _CALL_S)

    async def kill(self, vmm: Vmm) -> None:
        """Pause, flush, read, SIGKILL. See `Driver`."""
        if alive(vmm):
            try:
                async with asyncio.timeout(_SAVE_S):
                    await self._set_state(vmm, "Paused", _SAVE_S)
                    await self._flush(vmm, _SAVE_S)
                    self._session(vmm).metrics.read()
            except RefusedError:
                pass  # a guest that never started has nothing to tell
            except (DriverError, TimeoutError):
                # Nor has a VMM that hangs, unless it does so in its exit.
                await self._ends(vmm)
            mark_killed(Path(vmm.run_dir))
        await end_process(self._processes, vmm)

    async def inspect(self, vmm: Vmm) -> VmmState:
        """Ask `GET /`. See `Driver`."""
        if not alive(vmm):
            return VmmState.GONE
        try:
            body = await self._call(vmm, "GET", "/", b"", _INSPECT_S - 2 * EXIT_GRACE_S)
        except UnreachableError:
            if await self._ends(vmm):
                return VmmState.GONE
            raise
        try:
            return _STATES[_decode_instance(body).state]
        except (msgspec.MsgspecError, KeyError) as error:
            raise UnreachableError(f"{self.name} describes itself as {body[:80]!r}") from error

    async def counters(self, vmm: Vmm) -> DeviceCounters:
        """Flush and read the metrics file. See `Driver`."""
        if alive(vmm):
            try:
                await self._flush(vmm, _FLUSH_S)
            except RefusedError:
                pass  # not started yet: everything is zero
            except UnreachableError:
                # An orderly exit writes its own last line, so wait for the end and read that.
                if not await self._ends(vmm):
                    raise
        return self._device_counters(self._session(vmm).metrics.read())

    def exit_reason(self, vmm: Vmm, exit_code: int | None) -> ExitReason:
        """Exit code 0 is a triple fault too; only a pulled reset line makes it a shutdown."""
        run_dir = Path(vmm.run_dir)
        by_guest = run_dir.is_dir() and self._session(vmm).metrics.read().reset_count >= 1
        by_us = was_killed(run_dir)
        match exit_code:
            case 0 | None | exit_of.HELPED_EXIT_CODE if by_guest:
                return ExitReason.GUEST_SHUTDOWN
            case None:
                return ExitReason.KILLED if by_us else ExitReason.UNKNOWN
            case -9:
                return ExitReason.KILLED
            case _:
                return ExitReason.CRASHED

    async def destroy(self, vmm: Vmm) -> None:
        """Remove socket, metrics, console. See `Driver`."""
        await self._close_session(ProcessId(vmm.pid, vmm.start_ticks))
        _remove(Path(vmm.run_dir))
        self._processes.forget(vmm.pid, vmm.start_ticks)

    def console(self, run_dir: Path) -> Path:
        """Standard output of the VMM, which is the guest's first serial port."""
        return run_dir / CONSOLE

    async def close(self) -> None:
        """Close API connections and files. See `Driver`."""
        for process in list(self._sessions):
            await self._close_session(process)

    # What the simulator does in another way.

    def _version(self) -> str:
        try:
            done = subprocess.run(
                [str(self._require_binary()), "--version"],
                capture_output=True, stdin=subprocess.DEVNULL, text=True, timeout=2, check=True,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            raise DriverError(f"firecracker does not run: {error}") from error
        first = done.stdout.partition("\n")[0]
        return first.removeprefix("Firecracker v").strip()

    def _argv(self, plan: MachinePlan) -> Sequence[str]:
        return [
            str(self._require_binary()),
            *("--api-sock", API_SOCKET),
            *("--id", str(plan.vm_id)),
            *("--level", "Error"),
        ]

    def _environment(self) -> Mapping[str, str] | None:
        return None

    def _device_counters(self, totals: MetricsTotals) -> DeviceCounters:
        return DeviceCounters(
            disk_read_bytes=totals.disk_read_bytes, disk_write_bytes=totals.disk_write_bytes
        )

    def _require_binary(self) -> Path:
        if self._binary is None:
            raise DriverError("there is no firecracker binary on PATH")
        return self._binary

    async def _wait_for_api(self, vmm: Vmm) -> None:
        while True:
            try:
                await self._call(vmm, "GET", "/", b"", _CALL_S)
            except UnreachableError:
                if not alive(vmm):
                    raise DriverError(self._epitaph(vmm)) from None
                await asyncio.sleep(_SOCKET_POLL_S)
            else:
                return

    async def _ends(self, vmm: Vmm) -> bool:
        """Whether a VMM that stopped answering ends now; one that hangs in its exit is helped."""
        if await ends_soon(vmm):
            return True
        if not self._hangs_in_exit(vmm):
            return False
        _log.warning("vmm.helped_out", vm_id=str(vmm.vm_id), pid=vmm.pid)
        self._processes.send(vmm.pid, vmm.start_ticks, signal.SIGHUP)
        return await ends_soon(vmm)

    def _hangs_in_exit(self, vmm: Vmm) -> bool:
        return not exit_of.has_vcpus(vmm.pid)

    async def _abandon(self, vmm: Vmm) -> None:
        """Undo `create`."""
        self._processes.kill(vmm.pid, vmm.start_ticks)
        await self._processes.wait_exit(vmm.pid, vmm.start_ticks)
        await self.destroy(vmm)

    async def _action(self, vmm: Vmm, action: str, limit_s: float) -> None:
        await self._call(vmm, "PUT", "/actions", _encode({"action_type": action}), limit_s)

    async def _flush(self, vmm: Vmm, limit_s: float) -> None:
        await self._call(vmm, "PUT", "/actions", _FLUSH, limit_s)

    async def _set_state(self, vmm: Vmm, state: str, limit_s: float) -> None:
        await self._call(vmm, "PATCH", "/vm", _encode({"state": state}), limit_s)

    async def _call(self, vmm: Vmm, method: str, path: str, body: bytes, limit_s: float) -> bytes:
        try:
            async with asyncio.timeout(limit_s):
                answer = await self._session(vmm).api.request(method, path, body)
        except TimeoutError as error:
            raise UnreachableError(
                f"{self.name} did not answer {method} {path} within {limit_s:g} s"
            ) from error
        except (OSError, ProtocolError) as error:
            raise UnreachableError(f"{method} {path} failed: {error}") from error
        if answer.status >= 300:
            raise RefusedError(
                answer.status, f"{self.name} refused {method} {path}: {_fault(answer.body)}"
            )
        return answer.body

    def _session(self, vmm: Vmm) -> _Session:
        process = ProcessId(vmm.pid, vmm.start_ticks)
        session = self._sessions.get(process)
        if session is None:
            run_dir = Path(vmm.run_dir)
            try:
                metrics = MetricsFile(run_dir)
            except OSError as error:
                raise DriverError(f"cannot read the metrics of {vmm.vm_id}: {error}") from error
            session = _Session(UnixHttpConnection(run_dir / API_SOCKET), metrics)
            self._sessions[process] = session
        return session

    async def _close_session(self, process: ProcessId) -> None:
        if (session := self._sessions.pop(process, None)) is not None:
            session.metrics.close()
            await session.api.close()

    def _epitaph(self, vmm: Vmm) -> str:
        words = console_tail(Path(vmm.run_dir))
        return f"{self.name} ended by itself" + (f": {words}" if words else "")


def _fault(body: bytes) -> str:
    try:
        # Some have line breaks, and a reason is one line.
        return " ".join(_decode_fault(body).fault_message.split()) or "no reason given"
    except msgspec.MsgspecError:
        return repr(body[:120])


def _remove(run_dir: Path) -> None:
    for name in (API_SOCKET, CONSOLE, KILLED_MARK, "metrics.json", "metrics.state"):
        (run_dir / name).unlink(missing_ok=True)
