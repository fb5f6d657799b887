"""From VMM start to final counters: one incarnation of a VM.

Whoever calls holds the VM's lock. The end of a VMM is noticed by a task per VMM; it settles the
incarnation unless a command is about to.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Protocol

import structlog

from runtime.clock import utc_now
from schemas.errors import ErrorCode, ErrorInfo
from schemas.events import VmStarted, VmStopped
from schemas.units import NS_PER_S
from schemas.vms import Counters, ExitReason, VmState
from vm_agent.cgroups import CgroupError
from vm_agent.connecting import Connecting
from vm_agent.drivers.abc import DriverError, Nic, Vmm
from vm_agent.fleet import Exit, Fleet, Live, Vm
from vm_agent.metering import VmMeter
from vm_agent.network.taps import NetworkError
from vm_agent.places import Places
from vm_agent.ports import Host
from vm_agent.process import ExitStatus
from vm_agent.reporter import Spawn
from vm_agent.restarts import after_death, backoff
from vm_agent.snapshot_store import Manifest
from vm_agent.states import RefusedError
from vm_agent.store import Record, Settlement, Start
from vm_agent.wishes import shares

_log = structlog.get_logger("decisec.incarnations")

_DEATH_S = 5.0
_LAST_READ_S = 2.0
_STARTS_AT_ONCE = 16
"""A VMM must be ready within seconds of its start; a thousand that start together would not be."""
_SUDDEN = frozenset({ExitReason.KILLED, ExitReason.CRASHED, ExitReason.UNKNOWN})
_UNREMARKABLE = frozenset({ExitReason.REQUESTED, ExitReason.GUEST_SHUTDOWN, ExitReason.KILLED})
"""A VMM that ends for one of these has nothing to tell of it."""
_CLOCK_TICK_NS = NS_PER_S // os.sysconf("SC_CLK_TCK")


class Metering(Protocol):
    """Who samples: told of every VMM that runs."""

    def add(self, live: Live) -> None:
        """Sample this VMM from the next tick on, and refresh its device counters."""

    async def ended(self, live: Live) -> None:
        """Ask the VMM no more; it has ended. Returns once nobody asks it."""

    def settle(self, record: Record, settlement: Settlement) -> None:
        """Send the final sample of an incarnation that an earlier run has ended."""


class Incarnations:
    """Starts and ends VMMs.

    Args:
        host: The host.
        places: Where VMMs live.
        fleet: Its VMs.
        metering: Who samples.
        spawn: Starts a named task in the agent's group.
        connecting: Connects their VMs.
    """

    def __init__(
        self,
        host: Host,
        places: Places,
        fleet: Fleet,
        metering: Metering,
        spawn: Spawn,
        connecting: Connecting,
    ) -> None:
        self._host = host
        self._places = places
        self._connecting = connecting
        self._fleet = fleet
        self._metering = metering
        self._spawn = spawn
        self._starts = asyncio.Semaphore(_STARTS_AT_ONCE)

    async def start(
        self, vm: Vm, snapshot: Path | None = None, manifest: Manifest | None = None
    ) -> None:
        """Start the next incarnation. Afterwards the VM is `running`; the caller commits it.

        Args:
            vm: Which.
            snapshot: Folder to go on from; None boots the image's kernel.
            manifest: What that snapshot is of.

        Raises:
            RefusedError: It did not work; the VM is stopped again, bootable, and nothing is left.
        """
        host, spec = self._host, vm.record.spec
        incarnation = vm.record.incarnation + 1
        lease = await self._connecting.lease(vm.vm_id, vm.record.customer_id, spec)
        nic = host.networks.nic_of(vm.vm_id, incarnation, lease) if spec.network else None
        if nic is not None:
            nic = replace(nic, limits=shares(spec.limits, host.driver)[1])
        if nic is not None and manifest is not None:
            nic = replace(nic, mac=manifest.mac)
        vm.enter(
            VmState.BOOTING,
            incarnation=incarnation,
            driver=host.driver.name,
            simulated=host.driver.simulated,
            uid=self._places.uid_of(vm.vm_id),
            snapshot_base=manifest.snapshot_id if manifest else None,
            lease=lease or vm.record.lease,
            nic=nic,
            start=None,
            final_counters=None,
            exit_reason=None,
            last_error=None,
            restart_at=None,
        )
        await self._fleet.commit(vm)
        try:
            async with self._starts:
                live = await self._spawn_vmm(vm, nic, snapshot)
                # Before the guest runs: what it sends while its tap moves would be lost uncounted.
                await self._connecting.attach(vm)
                if snapshot is None:
                    await live.driver.boot(live.vmm)
                else:
                    await live.driver.resume(live.vmm)
        except (DriverError, NetworkError, CgroupError, OSError) as error:
            info = ErrorInfo(code=ErrorCode.HYPERVISOR_FAILED, message=str(error))
            await self._undo(vm, info)
            raise RefusedError(info.code, info.message) from error
        except RefusedError as error:
            await self._undo(vm, error.info)
            raise
        vm.enter(VmState.RUNNING)
        vm.happened(
            VmStarted,
            driver=vm.record.driver,
            simulated=vm.record.simulated,
            snapshot_id=manifest.snapshot_id if manifest else None,
        )

    async def end_by_force(self, vm: Vm, reason: ExitReason = ExitReason.KILLED) -> None:
        """End a VM's VMM and settle it; nothing happens if there is none.

        Raises:
            DriverError: The process does not die.
        """
        live = vm.live
        if live is None:
            return
        await self._kill(live)
        await self._settle_soon(vm, live, reason)

    async def wait_end(self, vm: Vm, limit_s: float) -> bool:
        """Whether the VMM ends within the limit after its guest was asked; settles it then."""
        live = vm.live
        if live is None:
            return True
        try:
            async with asyncio.timeout(limit_s):
                await asyncio.shield(live.exited)
        except TimeoutError:
            return False
        reason = await self._reason(live, live.exited.result().status)
        if reason in (ExitReason.GUEST_SHUTDOWN, ExitReason.UNKNOWN):
            reason = ExitReason.REQUESTED
        await self.settle(vm, live, reason)
        return True

    async def settle(
        self, vm: Vm, live: Live, reason: ExitReason | None, error: ErrorInfo | None = None
    ) -> None:
        """Take the final counters of a VMM that has ended, report them, and clean up.

        Args:
            vm: Whose.
            live: The VMM; `exited` is done.
            reason: Why it ended; None asks the driver.
            error: What to show as the VM's last error.
        """
        end = live.exited.result()
        await self._metering.ended(live)
        await self._last_reading(live)
        final = live.meter.settle(now_ns=end.at_ns, cpu_ns=end.status.cpu_ns)
        if reason is None:
            reason = await self._reason(live, end.status)
        vm.live = None
        self._stop(vm, final, reason, error)
        await self._fleet.commit(vm)
        live.meter.finish(final)
        said = "" if reason in _UNREMARKABLE else live.driver.last_words(live.vmm)
        await self._clean_up(live, vm.record.nic)
        vm.stage(nic=None)
        _log.info(
            "vmm.ended",
            vm_id=str(vm.vm_id),
            incarnation=vm.record.incarnation,
            reason=reason,
            **({"said": said} if said else {}),
        )

    async def adopt(self, vm: Vm, live: Live) -> None:
        """Go on with a VMM that an earlier run of the agent started."""
        vm.live = live
        self._metering.add(live)
        self._spawn(self._watch(vm, live), f"vmm-{vm.vm_id}-{live.vmm.incarnation}")

    def stopped_unseen(self, vm: Vm, final: Counters, reason: ExitReason) -> None:
        """Stage the end of an incarnation whose VMM is gone without this run having seen it."""
        self._stop(vm, final, reason, vm.record.last_error)

    async def clear(self, vm: Vm) -> None:
        """Remove what an incarnation without a VMM has left on the host. Idempotent."""
        record = vm.record
        await self._places.clear(record.vm_id, record.incarnation, record.nic)
        vm.stage(nic=None)

    def _stop(self, vm: Vm, final: Counters, reason: ExitReason, error: ErrorInfo | None) -> None:
        record = vm.record
        settlement = Settlement(
            incarnation=record.incarnation, counters=final, simulated=record.simulated
        )
        failures, restart_at = after_death(record, reason, final, utc_now())
        vm.stage(
            vmm=None,
            failures=failures,
            restart_at=restart_at,
            final_counters=final,
            exit_reason=reason,
            last_error=error,
            unsettled=(*record.unsettled, settlement),
        )
        vm.enter(VmState.STOPPED)
        vm.happened(VmStopped, reason=reason, final_counters=final)

    async def _spawn_vmm(self, vm: Vm, nic: Nic | None, snapshot: Path | None) -> Live:
        host, record = self._host, vm.record
        plan = await self._places.make(vm, nic, snapshot)
        before_ns = host.processes.boottime_ns()
        vmm = await host.driver.create(plan)
        start = Start(
            boottime_ns=self._start_ns(vmm, before_ns),
            boot_id=host.processes.boot_id(),
            at=utc_now(),
            cpu_base_ns=await asyncio.to_thread(self._places.cpu_base_ns, vmm),
        )
        live = Live(
            vmm,
            host.driver,
            VmMeter(
                vm.vm_id,
                vmm.incarnation,
                memory_mib=record.spec.memory_mib,
                started_ns=start.boottime_ns,
                sources=await host.processes.sources(
                    vmm, nic, self._places.settled_cpu(vmm, start)
                ),
                state=VmState.BOOTING,
                simulated=host.driver.simulated,
            ),
        )
        await self.adopt(vm, live)
        vm.stage(vmm=vmm, start=start)
        await self._fleet.commit(vm)
        return live

    def _start_ns(self, vmm: Vmm, before_ns: int) -> int:
        """CLOCK_BOOTTIME at VMM start, at most 10 ms too late and never too early."""
        # The kernel tells the start in clock ticks, rounded down.
        latest_ns = min((vmm.start_ticks + 1) * _CLOCK_TICK_NS, self._host.processes.boottime_ns())
        return max(before_ns, latest_ns)

    async def _undo(self, vm: Vm, info: ErrorInfo) -> None:
        """Make a VM whose boot failed stopped and bootable again."""
        live = vm.live
        if live is None:
            await self.clear(vm)
            vm.stage(last_error=info)
            vm.enter(VmState.STOPPED)
            await self._fleet.commit(vm)
            return
        await self._kill(live)
        await self._settle_soon(vm, live, None, info)

    async def _kill(self, live: Live) -> None:
        """End a VMM, its driver willing or not."""
        try:
            await live.driver.kill(live.vmm)
        except DriverError as error:
            _log.warning("vmm.kill_failed", vm_id=str(live.vmm.vm_id), error=str(error))
            self._host.processes.kill(live.vmm)

    async def _settle_soon(
        self, vm: Vm, live: Live, reason: ExitReason | None, error: ErrorInfo | None = None
    ) -> None:
        try:
            async with asyncio.timeout(_DEATH_S):
                await asyncio.shield(live.exited)
        except TimeoutError as cause:
            raise DriverError(f"process {live.vmm.pid} does not end") from cause
        await self.settle(vm, live, reason, error)

    async def _watch(self, vm: Vm, live: Live) -> None:
        status = await self._host.processes.wait_exit(live.vmm)
        now_ns = self._host.processes.boottime_ns()
        live.meter.stop_clock(now_ns)
        live.exited.set_result(Exit(status, now_ns))
        async with vm.lock:
            if vm.live is live:
                await self.settle(vm, live, None)
        self.restart_when_due(vm)

    def restart_when_due(self, vm: Vm) -> None:
        """Start a VM again at the time that its record names; nothing happens if it names none."""
        due = vm.record.restart_at
        if due is not None:
            self._spawn(self._restart(vm, due), f"restart-{vm.vm_id}-{vm.record.incarnation}")

    async def _restart(self, vm: Vm, due: datetime) -> None:
        await asyncio.sleep(max(0.0, (due - utc_now()).total_seconds()))
        async with vm.lock:
            # A command may have come first.
            if vm.record.restart_at != due or vm.record.state is not VmState.STOPPED:
                return
            failures = vm.record.failures
            _log.info("vm.restarted", vm_id=str(vm.vm_id), failures=failures)
            try:
                await self.start(vm)
            except RefusedError as error:
                _log.warning("restart.failed", vm_id=str(vm.vm_id), error=error.info.message)
                vm.stage(failures=failures + 1, restart_at=utc_now() + backoff(failures + 1))
                vm.report_status()
            await self._fleet.commit(vm)
        self.restart_when_due(vm)

    async def _last_reading(self, live: Live) -> None:
        try:
            async with asyncio.timeout(_LAST_READ_S):
                live.meter.device = await live.driver.counters(live.vmm)
        except (DriverError, TimeoutError) as error:
            # What was read last stands: less than the truth perhaps, never more.
            _log.error("counters.last_reading_failed", vm_id=str(live.vmm.vm_id), error=str(error))

    async def _reason(self, live: Live, status: ExitStatus) -> ExitReason:
        try:
            reason = live.driver.exit_reason(live.vmm, status.exit_code)
        except DriverError as error:
            _log.warning("vmm.ended_unexplained", vm_id=str(live.vmm.vm_id), error=str(error))
            reason = ExitReason.UNKNOWN
        return await self.told_by_kernel(live.vmm, reason)

    async def told_by_kernel(self, vmm: Vmm, reason: ExitReason) -> ExitReason:
        """The reason that a driver gives, unless the kernel knows better: it was out of memory."""
        if reason in _SUDDEN and await asyncio.to_thread(self._places.starved, vmm):
            return ExitReason.OOM_KILLED
        return reason

    async def _clean_up(self, live: Live, nic: Nic | None) -> None:
        try:
            await live.driver.destroy(live.vmm)
            await self._places.clear(live.vmm.vm_id, live.vmm.incarnation, nic)
        except (DriverError, NetworkError, CgroupError) as error:
            # The next start of the agent, or the deletion of the VM, tries again.
            _log.error("vmm.clean_up_failed", vm_id=str(live.vmm.vm_id), error=str(error))
