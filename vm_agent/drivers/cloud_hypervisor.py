"""Cloud Hypervisor over its API socket (v53).

A guest that shuts down ends its VMM at once, and one that resets is booted again in the same
process; in both cases the disk counters of the machine before are gone with it. So they are exact
after a kill, which pauses the guest first, and else as of the last reading before: readings follow
each other quickly once a guest has been asked to stop. What is not read is not billed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from schemas.vms import ExitReason, SnapshotKind
from vm_agent.drivers import cloud_hypervisor_api as api
from vm_agent.drivers import cloud_hypervisor_snapshot as snapshots
from vm_agent.drivers.abc import (
    Ability,
    DeviceCounters,
    DriverError,
    MachinePlan,
    Snapshots,
    UnreachableError,
    Vmm,
    VmmState,
)
from vm_agent.drivers.cloud_hypervisor_counters import COUNTERS, GuestCounters
from vm_agent.drivers.cloud_hypervisor_events import EVENTS, EventFile
from vm_agent.drivers.cloud_hypervisor_log import LOG, vcpu_failed
from vm_agent.drivers.cloud_hypervisor_machine import has_landlock, require_files, vm_config
from vm_agent.drivers.jail import kvm_groups, make_home, root_of
from vm_agent.drivers.jail import remove as remove_home
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
from vm_agent.drivers.unix_http import Answer, ProtocolError, UnixHttpConnection
from vm_agent.process import ProcessId, VmmProcesses

_BOOT_S = 5.0
_CALL_S = 2.0
_INSPECT_S = 1.0
_STATS_S = 0.7
_SAVE_S = 2.0
_SNAPSHOT_S = 60.0

# A guest that was asked to stop is read so often, for so long; many at once less often each.
_FOLLOW_PERIOD_S = 0.005
_FOLLOW_SHARE_S = 0.001
_FOLLOW_S = 30.0

_STATES: dict[str, VmmState] = {
    api.VmState.CREATED: VmmState.CREATED,
    api.VmState.RUNNING: VmmState.RUNNING,
    api.VmState.PAUSED: VmmState.PAUSED,
}


class RefusedError(DriverError):
    """The VMM answered with an error."""


@dataclass(slots=True)
class _Session:
    """What is kept open for one VMM. Can be made anew at any time."""

    api: UnixHttpConnection
    events: EventFile
    totals: GuestCounters
    # Readings are taken in one at a time, in the order in which they were made.
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    follower: asyncio.Task[None] | None = None


class CloudHypervisorDriver(ProcessDriver[_Session], Snapshots):
    """One Cloud Hypervisor process per VM. Its standard output is the guest's console.

    It has no jailer: the agent starts it as a user of its own without any privilege, in a
    directory with nothing but this VM's files, and it confines itself to these by landlock and
    to few system calls by seccomp.

    Args:
        binary: The executable; None if there is none, which every verb then says.
        processes: The agent's VMM processes.
        confined: Run as the plan's user, if it has one.
    """

    name = "cloud-hypervisor"
    executable = "cloud-hypervisor"
    files = (COUNTERS,)
    abilities = frozenset({Ability.PAUSE, Ability.SNAPSHOT, Ability.DISK_LIMITS})

    def __init__(
        self, binary: Path | None, processes: VmmProcesses, *, confined: bool = True
    ) -> None:
        super().__init__(binary, processes)
        self._confined = confined
        self._followed = 0

    async def create(self, plan: MachinePlan) -> Vmm:
        """Spawn the process, then configure the machine or restore it. See `Driver`."""
        require_files(plan)
        return await super().create(plan)

    async def shutdown(self, vmm: Vmm) -> None:
        """Press the ACPI power button, and follow the guest to its end. See `Driver`."""
        if not alive(vmm):
            return
        try:
            await self._read(vmm, _CALL_S / 2)
            await self._put(vmm, "vm.power-button", _CALL_S / 2)
        except UnreachableError:
            if not await ends_soon(vmm):
                raise
        else:
            self._follow(vmm)

    async def pause(self, vmm: Vmm) -> None:
        """Stop the vCPUs. See `Driver`."""
        await self._change(vmm, "vm.pause", VmmState.PAUSED)

    async def resume(self, vmm: Vmm) -> None:
        """Let the vCPUs go on. See `Driver`."""
        await self._change(vmm, "vm.resume", VmmState.RUNNING)

    async def snapshot(self, vmm: Vmm, folder: Path, kind: SnapshotKind) -> None:
        """Write configuration, device state and memory. See `Snapshots`."""
        if kind is not SnapshotKind.FULL:
            raise DriverError(f"{self.name} has no {kind} snapshots")
        home = root_of(Path(vmm.run_dir))
        snapshots.empty(home)
        url = api.file_url(snapshots.SNAPSHOT_DIR)
        body = api.encode(api.VmSnapshotConfig(destination_url=url))
        await self._put(vmm, "vm.snapshot", _SNAPSHOT_S, body)
        await asyncio.to_thread(snapshots.move, home, folder)

    async def kill(self, vmm: Vmm) -> None:
        """Pause, read, save, SIGKILL. See `Driver`."""
        if alive(vmm):
            # A VMM that hangs has nothing more to tell, nor has one whose guest never ran.
            with suppress(DriverError, TimeoutError):
                async with asyncio.timeout(_SAVE_S):
                    await self.pause(vmm)
                    await self._read(vmm, _SAVE_S)
            mark_killed(Path(vmm.run_dir))
        await end_process(self._processes, vmm)

    async def inspect(self, vmm: Vmm) -> VmmState:
        """Ask `vm.info`. A VMM whose guest has been shut down is ended. See `Driver`."""
        if not alive(vmm):
            return VmmState.GONE
        try:
            body = await self._call(vmm, "GET", "vm.info", _INSPECT_S - 2 * EXIT_GRACE_S)
            word = api.decode_info(body).state
        except UnreachableError:
            if await ends_soon(vmm):
                return VmmState.GONE
            raise
        except msgspec.MsgspecError as error:
            raise UnreachableError(f"{self.name} describes itself with garbage") from error
        shut_down = self._session(vmm).events.read().shut_down
        if word == api.VmState.SHUTDOWN or (word == api.VmState.CREATED and shut_down):
            # Somebody has told the VMM to stop the machine and to stay.
            with suppress(UnreachableError):
                await self._put(vmm, "vmm.shutdown", EXIT_GRACE_S)
            return VmmState.GONE if await ends_soon(vmm) else VmmState.PAUSED
        try:
            return _STATES[word]
        except KeyError as error:
            raise UnreachableError(f"{self.name} describes itself as {word!r:.80}") from error

    async def counters(self, vmm: Vmm) -> DeviceCounters:
        """Ask `vm.counters`; the saved reading once the VMM is gone. See `Driver`."""
        if alive(vmm):
            try:
                await self._read(vmm, _STATS_S)
            except UnreachableError:
                if not await ends_soon(vmm):
                    raise
        totals = self._session(vmm).totals
        return DeviceCounters(
            disk_read_bytes=totals.read_bytes, disk_write_bytes=totals.write_bytes
        )

    def exit_reason(self, vmm: Vmm, exit_code: int | None) -> ExitReason:
        """The VMM ends with 0 for its guest's shutdown, a SIGTERM and a vCPU that failed."""
        run_dir = Path(vmm.run_dir)
        home = root_of(run_dir)
        history = self._session(vmm).events.read() if run_dir.is_dir() else None
        match exit_code:
            case 0:
                orderly = True
            case None:
                # It removes its socket when it ends in order; its last events may be lost.
                orderly = history is not None and (
                    history.ended or not (home / API_SOCKET).exists()
                )
            case _:
                orderly = False
        if orderly:
            failed = vcpu_failed(home) or (history is not None and history.panicked)
            return ExitReason.CRASHED if failed else ExitReason.GUEST_SHUTDOWN
        match exit_code:
            case None:
                return ExitReason.KILLED if was_killed(run_dir) else ExitReason.UNKNOWN
            case -9:
                return ExitReason.KILLED
            case _:
                return ExitReason.CRASHED

    def _argv(self, plan: MachinePlan) -> Sequence[str]:
        del plan
        return [
            str(self._require_binary()),
            *("--api-socket", f"path={API_SOCKET}"),
            *("--event-monitor", f"path={EVENTS}"),
            *("--log-file", LOG),
            *("--seccomp", "true"),
        ]

    def _log_of(self, run_dir: Path) -> Path:
        return root_of(run_dir) / LOG

    def _prepare(self, plan: MachinePlan) -> MachinePlan:
        uid = plan.uid if self._confined else None
        seen = make_home(plan, uid)
        home = root_of(plan.run_dir)
        snapshots.prepare(home)
        if plan.snapshot is not None:
            snapshots.link(seen, home, plan.snapshot, landlock=has_landlock())
        return seen

    async def _launch(self, plan: MachinePlan) -> ProcessId:
        return self._processes.spawn(
            self._argv(plan),
            cwd=root_of(plan.run_dir),
            console=plan.run_dir / self.output,
            netns=plan.nic.netns if plan.nic else None,
            doors=plan.group.doors if plan.group else (),
            uid=plan.uid if self._confined else None,
            groups=kvm_groups(),
            env=self._environment(),
        )

    async def _configure(self, vmm: Vmm, plan: MachinePlan) -> None:
        await self._until_answered(vmm, lambda: self._call(vmm, "GET", "vmm.ping", _CALL_S))
        landlock = has_landlock()
        if plan.snapshot is None:
            config = api.encode(vm_config(plan, landlock=landlock))
            await self._put(vmm, "vm.create", _CALL_S, config)
        else:
            request = api.RestoreConfig(source_url=api.file_url(snapshots.RESTORE_DIR))
            await self._put(vmm, "vm.restore", _BOOT_S, api.encode(request))

    async def _start(self, vmm: Vmm) -> None:
        await self._put(vmm, "vm.boot", _BOOT_S)

    async def _change(self, vmm: Vmm, action: str, wanted: VmmState) -> None:
        """Do what the VMM refuses to do twice."""
        try:
            await self._put(vmm, action, _CALL_S)
        except RefusedError:
            if await self.inspect(vmm) is not wanted:
                raise

    async def _read(self, vmm: Vmm, limit_s: float) -> None:
        """Ask for the counters and save them; a guest that does not run has none."""
        session = self._session(vmm)
        async with session.turn:
            reset_ns = session.events.read().reset_ns
            try:
                body = await self._call(vmm, "GET", "vm.counters", limit_s)
                reading = api.decode_counters(body).disk
            except RefusedError:
                return
            except msgspec.MsgspecError as error:
                raise UnreachableError(f"{self.name} counts with garbage: {error}") from error
            session.totals.take(reading, time.clock_gettime_ns(time.CLOCK_BOOTTIME), reset_ns)

    def _follow(self, vmm: Vmm) -> None:
        session = self._session(vmm)
        if session.follower is None or session.follower.done():
            session.follower = asyncio.create_task(
                self._read_to_the_end(vmm), name=f"{self.name}-{vmm.vm_id}-follow"
            )

    async def _read_to_the_end(self, vmm: Vmm) -> None:
        self._followed += 1
        try:
            async with asyncio.timeout(_FOLLOW_S):
                while alive(vmm):
                    await self._read(vmm, _STATS_S)
                    await asyncio.sleep(max(_FOLLOW_PERIOD_S, self._followed * _FOLLOW_SHARE_S))
        except (DriverError, TimeoutError):
            return  # it is gone, or takes its time: the sampler goes on
        finally:
            self._followed -= 1

    async def _put(self, vmm: Vmm, action: str, limit_s: float, body: bytes = b"") -> None:
        await self._call(vmm, "PUT", action, limit_s, body)

    async def _call(
        self, vmm: Vmm, method: str, action: str, limit_s: float, body: bytes = b""
    ) -> bytes:
        try:
            async with asyncio.timeout(limit_s):
                answer = await self._session(vmm).api.request(method, api.API_ROOT + action, body)
        except TimeoutError as error:
            raise UnreachableError(
                f"{self.name} did not answer {action} within {limit_s:g} s"
            ) from error
        except (OSError, ProtocolError) as error:
            raise UnreachableError(f"{action} failed: {error}") from error
        return self._accepted(action, answer)

    def _accepted(self, action: str, answer: Answer) -> bytes:
        if answer.status >= 300:
            raise RefusedError(f"{self.name} refused {action}: {api.reason_of(answer.body)}")
        return answer.body

    def _remove_files(self, run_dir: Path) -> None:
        remove_home(run_dir)
        super()._remove_files(run_dir)

    def _open_session(self, vmm: Vmm) -> _Session:
        run_dir = Path(vmm.run_dir)
        home = root_of(run_dir)
        return _Session(
            UnixHttpConnection(home / API_SOCKET),
            EventFile(home),
            GuestCounters(run_dir, vmm.start_ticks),
        )

    async def _end_session(self, session: _Session) -> None:
        if session.follower is not None:
            session.follower.cancel()
            await asyncio.wait([session.follower])
        await session.api.close()
        session.events.close()
        session.totals.close()
