"""Firecracker over its API socket, unjailed (API version 1.12; the parts used are in 1.16 too).

The block counters come from `FlushMetrics` and the metrics channel, so a stop is always: pause,
flush, read, SIGKILL; a signal alone would lose what happened since the last flush. What waits to be
read is read before a flush too: a full pipe would lose what the flush hands out.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from schemas.vms import ExitReason
from vm_agent.drivers import firecracker_exit as exit_of
from vm_agent.drivers.abc import (
    Ability,
    DeviceCounters,
    DriverError,
    MachinePlan,
    UnreachableError,
    Vmm,
    VmmState,
)
from vm_agent.drivers.firecracker_machine import requests
from vm_agent.drivers.metrics import open_metrics
from vm_agent.drivers.metrics_file import MetricsFile
from vm_agent.drivers.metrics_lines import METRICS, METRICS_STATE, MetricsChannel, MetricsTotals
from vm_agent.drivers.passing import (
    EXIT_GRACE_S,
    alive,
    end_process,
    ends_soon,
    mark_killed,
    was_killed,
)
from vm_agent.drivers.paths import API_SOCKET
from vm_agent.drivers.process_driver import ProcessDriver
from vm_agent.drivers.unix_http import ProtocolError, UnixHttpConnection
from vm_agent.process import VmmProcesses

_log = structlog.get_logger("decisec.firecracker")

_BOOT_S = 5.0
_CALL_S = 2.0
_INSPECT_S = 1.0
_FLUSH_S = 0.5
_SAVE_S = 2.0

_NOT_STARTED = "before starting the microVM"
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
    metrics: MetricsChannel


class FirecrackerDriver(ProcessDriver[_Session]):
    """One unjailed Firecracker process per VM. Its output is the guest's console too.

    Args:
        binary: The executable; None if there is none.
        processes: The agent's VMM processes.
        metrics: How new VMMs tell their metrics; one that runs keeps the channel it has.
    """

    name = "firecracker"
    executable = "firecracker"
    files = (API_SOCKET, METRICS, METRICS_STATE)
    abilities = frozenset({Ability.PAUSE})

    def __init__(
        self,
        binary: Path | None,
        processes: VmmProcesses,
        metrics: type[MetricsChannel] = MetricsFile,
    ) -> None:
        super().__init__(binary, processes)
        self._channel = metrics

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
                    self._read(vmm)
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
        """Flush and read the metrics. See `Driver`."""
        if alive(vmm):
            try:
                await self._flush(vmm, _FLUSH_S)
            except RefusedError:
                pass  # not started yet: everything is zero
            except UnreachableError:
                # An orderly exit writes its own last line, so wait for the end and read that.
                if not await self._ends(vmm):
                    raise
        return self._device_counters(self._read(vmm))

    def exit_reason(self, vmm: Vmm, exit_code: int | None) -> ExitReason:
        """Exit code 0 is a triple fault too; only a pulled reset line makes it a shutdown."""
        run_dir = Path(vmm.run_dir)
        by_guest = run_dir.is_dir() and self._read(vmm).reset_count >= 1
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

    # What the simulator does in another way.

    def _argv(self, plan: MachinePlan) -> Sequence[str]:
        return [
            str(self._require_binary()),
            *("--api-sock", API_SOCKET),
            *("--id", str(plan.vm_id)),
            *("--level", "Error"),
        ]

    def _device_counters(self, totals: MetricsTotals) -> DeviceCounters:
        return DeviceCounters(
            disk_read_bytes=totals.disk_read_bytes, disk_write_bytes=totals.disk_write_bytes
        )

    def _prepare(self, run_dir: Path) -> None:
        try:
            self._channel.prepare(run_dir)
        except OSError as error:
            raise DriverError(f"cannot make the metrics channel: {error}") from error

    async def _configure(self, vmm: Vmm, plan: MachinePlan) -> None:
        await self._until_answered(vmm, lambda: self._call(vmm, "GET", "/", b"", _CALL_S))
        for path, body in requests(plan):
            await self._call(vmm, "PUT", path, _encode(body), _CALL_S)

    async def _start(self, vmm: Vmm) -> None:
        await self._action(vmm, "InstanceStart", _BOOT_S)

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

    async def _action(self, vmm: Vmm, action: str, limit_s: float) -> None:
        await self._call(vmm, "PUT", "/actions", _encode({"action_type": action}), limit_s)

    async def _flush(self, vmm: Vmm, limit_s: float) -> None:
        self._read(vmm)
        try:
            await self._call(vmm, "PUT", "/actions", _FLUSH, limit_s)
        except RefusedError as error:
            if _NOT_STARTED in str(error):
                raise
            self._session(vmm).metrics.lose(str(error))

    def _read(self, vmm: Vmm) -> MetricsTotals:
        metrics = self._session(vmm).metrics
        try:
            return metrics.read()
        except OSError as error:
            raise DriverError(f"cannot read the metrics of {vmm.vm_id}: {error}") from error

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

    def _open_session(self, vmm: Vmm) -> _Session:
        run_dir = Path(vmm.run_dir)
        metrics = open_metrics(run_dir, run_dir / METRICS_STATE)
        return _Session(UnixHttpConnection(run_dir / API_SOCKET), metrics)

    async def _end_session(self, session: _Session) -> None:
        session.metrics.close()
        await session.api.close()


def _fault(body: bytes) -> str:
    try:
        # Some have line breaks, and a reason is one line.
        return " ".join(_decode_fault(body).fault_message.split()) or "no reason given"
    except msgspec.MsgspecError:
        return repr(body[:120])
