"""Firecracker over its API socket (API version 1.12; the parts used are in 1.16 too).

The block counters come from `FlushMetrics` and the metrics channel, so a stop is always: pause,
flush, read, SIGKILL; a signal alone would lose what happened since the last flush. What waits to be
read is read before a flush too: a full pipe would lose what the flush hands out.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import structlog

from schemas.vms import ExitReason, SnapshotKind
from vm_agent.drivers import firecracker_exit as exit_of
from vm_agent.drivers import firecracker_snapshot as snapshots
from vm_agent.drivers.abc import (
    Ability,
    DeviceCounters,
    DiffSnapshots,
    DriverError,
    MachinePlan,
    UnreachableError,
    Vmm,
    VmmState,
)
from vm_agent.drivers.firecracker_machine import METADATA, requests
from vm_agent.drivers.jail import DISK, Jail, root_of
from vm_agent.drivers.jail import remove as remove_jail
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
from vm_agent.process import ProcessId, VmmProcesses

_log = structlog.get_logger("decisec.firecracker")

_BOOT_S = 5.0
_CALL_S = 2.0
_INSPECT_S = 1.0
_FLUSH_S = 0.5
_SAVE_S = 2.0
_SNAPSHOT_S = 60.0

_LOG = "firecracker.log"
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
    """What is kept open for one VMM. Can be made anew at any time.

    Attributes:
        starting: It was made here, and its guest does not run yet.
    """

    api: UnixHttpConnection
    metrics: MetricsChannel
    starting: bool = False


class FirecrackerDriver(ProcessDriver[_Session], DiffSnapshots):
    """One Firecracker process per VM, in a jail. Its standard output is the guest's console.

    Args:
        binary: The executable; None if there is none, which every verb then says.
        processes: The agent's VMM processes.
        jail: Who confines new VMMs; None leaves them with the agent's own rights. A VMM that runs
            already stays as it is.
        metrics: How new VMMs tell their metrics; one that runs keeps the channel it has.
    """

    name = "firecracker"
    executable = "firecracker"
    files = (API_SOCKET, _LOG, METRICS, METRICS_STATE, DISK, *snapshots.FILES)
    abilities = frozenset(
        {
            *(Ability.PAUSE, Ability.SNAPSHOT, Ability.DIFF_SNAPSHOT),
            *(Ability.METADATA, Ability.BALLOON, Ability.DISK_LIMITS, Ability.NET_LIMITS),
        }
    )

    def __init__(
        self,
        binary: Path | None,
        processes: VmmProcesses,
        jail: Jail | None = None,
        metrics: type[MetricsChannel] = MetricsFile,
    ) -> None:
        super().__init__(binary, processes)
        self._jail = jail
        self._channel = metrics
        if jail is not None:
            processes.expect_orphans()

    async def probe_version(self) -> str:
        """The version; DriverError, too, if VMMs are to be jailed and cannot be."""
        if self._binary is not None and self._jail is not None and self._jail.missing:
            raise DriverError(f"{self._jail.missing}; to run without jails, say so in the settings")
        return await super().probe_version()

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
        self._session(vmm).starting = False

    async def snapshot(self, vmm: Vmm, folder: Path, kind: SnapshotKind) -> None:
        """Let it write the files, then take them. See `Snapshots`."""
        root = root_of(Path(vmm.run_dir))
        snapshots.clear(root)
        body = _encode(snapshots.request_to_make(kind))
        await self._call(vmm, "PUT", "/snapshot/create", body, _SNAPSHOT_S)
        try:
            await asyncio.to_thread(snapshots.take, root, folder)
        except OSError as error:
            raise DriverError(f"the snapshot cannot be taken: {error}") from error

    async def complete(self, folder: Path, base: Path) -> None:
        """Lay the memory that has changed over the memory before. See `DiffSnapshots`."""
        try:
            await asyncio.to_thread(snapshots.complete, folder, base)
        except OSError as error:
            raise DriverError(f"the snapshot cannot be completed: {error}") from error

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
        # Whether it is alive shows in its answer; asking the kernel first would cost as much.
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
            case 0:
                return ExitReason.TRIPLE_FAULT
            case 1:
                # What it ends with when KVM cannot go on with the guest.
                return ExitReason.INTERNAL_ERROR
            case -9:
                return ExitReason.KILLED
            case _:
                return ExitReason.CRASHED

    # What the simulator does in another way.

    def _argv(self, plan: MachinePlan) -> Sequence[str]:
        own = ["--api-sock", API_SOCKET, "--log-path", _LOG, "--level", "Error"]
        if self._jail is not None:
            self._require_binary()
            return self._jail.command(plan, own)
        return [str(self._require_binary()), "--id", str(plan.vm_id), *own]

    async def _launch(self, plan: MachinePlan) -> ProcessId:
        if self._jail is None:
            return await super()._launch(plan)
        return await self._jail.enter(plan, self._argv(plan), self._processes)

    def _device_counters(self, totals: MetricsTotals) -> DeviceCounters:
        return DeviceCounters(
            disk_read_bytes=totals.disk_read_bytes, disk_write_bytes=totals.disk_write_bytes
        )

    def _prepare(self, plan: MachinePlan) -> MachinePlan:
        if self._jail is not None:
            seen = self._jail.build(plan)
        elif plan.disk is not None:
            # A snapshot names the disk, and another VM's is elsewhere.
            os.link(plan.disk, plan.run_dir / DISK)
            seen = replace(plan, disk=Path(DISK))
        else:
            seen = plan
        root = root_of(plan.run_dir)
        if plan.snapshot is not None:
            snapshots.give(plan.snapshot, root)
        log = root / _LOG
        os.close(os.open(log, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        for file in (log, self._channel.prepare(root)):
            if self._jail is not None and plan.uid is not None:
                os.chown(file, plan.uid, plan.uid)
        return seen

    def _log_of(self, run_dir: Path) -> Path:
        return root_of(run_dir) / _LOG

    def _remove_files(self, run_dir: Path) -> None:
        remove_jail(run_dir)
        super()._remove_files(run_dir)

    async def _configure(self, vmm: Vmm, plan: MachinePlan) -> None:
        self._session(vmm).starting = True
        await self._until_answered(vmm, lambda: self._call(vmm, "GET", "/", b"", _CALL_S))
        for path, body in requests(plan):
            await self._tell(vmm, path, _encode(body))

    async def _tell(self, vmm: Vmm, path: str, body: bytes) -> None:
        try:
            await self._call(vmm, "PUT", path, body, _CALL_S)
        except DriverError as error:
            if path != METADATA:
                raise
            # Firecracker quotes what it does not understand, and this may be secret.
            status = f": status {error.status}" if isinstance(error, RefusedError) else ""
            raise DriverError(f"{self.name} did not take the metadata{status}") from None

    async def _start(self, vmm: Vmm) -> None:
        await self._action(vmm, "InstanceStart", _BOOT_S)
        self._session(vmm).starting = False

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
        # One that is slow to start has no vCPUs either, yet.
        return not self._session(vmm).starting and not exit_of.has_vcpus(vmm.pid)

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
        root = root_of(run_dir)
        metrics = open_metrics(root, run_dir / METRICS_STATE)
        return _Session(UnixHttpConnection(root / API_SOCKET), metrics)

    async def _end_session(self, session: _Session) -> None:
        session.metrics.close()
        await session.api.close()


def _fault(body: bytes) -> str:
    try:
        # Some have line breaks, and a reason is one line.
        return " ".join(_decode_fault(body).fault_message.split()) or "no reason given"
    except msgspec.MsgspecError:
        return repr(body[:120])
