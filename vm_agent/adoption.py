"""The start of an agent: what its predecessor left behind is taken over, finished or undone.

Runs before any command is taken. Afterwards each record says what is true on the host: VMMs that
live are metered on from where they were, those that are gone are settled with what was seen of
them, and a boot that was half done is undone, so that its redelivery can start anew.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from uuid import UUID

import structlog

from runtime.clock import utc_now
from schemas.events import VmStarted
from schemas.units import NS_PER_MS
from schemas.vms import METERED_STATES, Counters, ExitReason, VmState
from vm_agent.admission import Admission
from vm_agent.cgroups import CgroupError
from vm_agent.counters import ZERO, Values
from vm_agent.drivers.abc import Driver, DriverError, Vmm, VmmState
from vm_agent.fleet import Fleet, Live, Vm
from vm_agent.incarnations import Incarnations, Metering
from vm_agent.metering import GoneSources, VmMeter
from vm_agent.network.taps import NetworkError
from vm_agent.places import Places
from vm_agent.ports import Host, incarnation_name
from vm_agent.restarts import after_death
from vm_agent.store import Record, Start

_log = structlog.get_logger("decisec.adoption")

_LAST_READ_S = 2.0


class Adoption:
    """Takes over a host.

    Args:
        host: The host.
        fleet: Gets the VMs.
        places: Where VMMs live.
        incarnations: Goes on with VMMs that live.
        admission: Gets their reservations.
        metering: Samples them.
        seen: Counters per VM and incarnation as they were reported last.
    """

    def __init__(
        self,
        host: Host,
        fleet: Fleet,
        places: Places,
        incarnations: Incarnations,
        admission: Admission,
        metering: Metering,
        seen: Mapping[tuple[UUID, int], Values],
    ) -> None:
        self._host = host
        self._fleet = fleet
        self._places = places
        self._incarnations = incarnations
        self._admission = admission
        self._metering = metering
        self._seen = seen

    async def run(self, records: list[Record]) -> None:
        """Bring all records and the host to agree; all VMs at once."""
        host = self._host
        known = frozenset(record.vmm.pid for record in records if record.vmm)
        strays = await asyncio.to_thread(host.processes.end_strays, host.run_root, known)
        if strays:
            _log.warning("strays.ended", pids=strays)
        await asyncio.to_thread(self._sweep, records)
        async with asyncio.TaskGroup() as group:
            for record in records:
                vm = self._fleet.add(record)
                group.create_task(self._take(vm), name=f"adopt-{record.vm_id}")
        _log.info("vms.adopted", **{k: n for k, n in self._fleet.by_state().items() if n})

    def _sweep(self, records: list[Record]) -> None:
        """Remove control groups and run directories that belong to no incarnation."""
        host = self._host
        ours = {incarnation_name(r.vm_id, r.incarnation) for r in records}
        for name in set(host.groups.names()) - ours:
            try:
                host.groups.destroy(name)
            except CgroupError as error:
                _log.error("leftover.not_removed", error=str(error))
        if host.run_root.is_dir():
            for folder in host.run_root.iterdir():
                if folder.name not in ours:
                    shutil.rmtree(folder, ignore_errors=True)

    async def _take(self, vm: Vm) -> None:
        record = vm.record
        if record.state is not VmState.DELETED:
            self._admission.restore(record.vm_id, record.spec)
            if record.uid is not None and self._host.uids is not None:
                self._host.uids.restore(record.vm_id, record.uid)
        for settlement in record.unsettled:
            self._metering.settle(record, settlement)
        async with vm.lock:
            if record.vmm is None or record.start is None:
                await self._without_vmm(vm)
            else:
                await self._with_vmm(vm, record.vmm, record.start)
        self._fleet.replay(vm)
        self._incarnations.restart_when_due(vm)
        if vm.record.spent:
            await self._fleet.tidy(vm)

    async def _without_vmm(self, vm: Vm) -> None:
        """Nothing of it runs; a boot may have come as far as an interface."""
        if vm.record.nic is not None or vm.record.state in METERED_STATES:
            await self._clear(vm)
        if vm.record.state in METERED_STATES:
            if vm.record.state is VmState.BOOTING and vm.record.current is None:
                # A restart was cut off before its VMM was there.
                failures, due = after_death(vm.record, ExitReason.UNKNOWN, Counters(), utc_now())
                vm.stage(failures=failures, restart_at=due)
            vm.enter(VmState.STOPPED)
            await self._fleet.commit(vm)

    async def _with_vmm(self, vm: Vm, vmm: Vmm, start: Start) -> None:
        driver = self._host.drivers[vmm.driver]
        state = await self._inspect(driver, vmm, start)
        rebooted = self._rebooted(start)
        meter = VmMeter(
            vm.vm_id,
            vmm.incarnation,
            memory_mib=vm.record.spec.memory_mib,
            started_ns=start.boottime_ns,
            sources=GoneSources()
            if rebooted
            else await self._host.processes.sources(
                vmm, vm.record.nic, self._places.settled_cpu(vmm, start)
            ),
            state=vm.record.state,
            simulated=vm.record.simulated,
            last=self._seen.get((vm.vm_id, vmm.incarnation)),
        )
        if not rebooted:
            await self._last_reading(driver, vmm, meter)
        if state is VmmState.GONE:
            await self._gone(vm, driver, vmm, meter, start)
            return
        if vm.record.current and vm.record.current.verb == "snapshot":
            state = await self._resumed(vm, driver, vmm, state)
        live = Live(vmm, driver, meter)
        await self._incarnations.adopt(vm, live)
        match vm.record.state, state:
            case VmState.BOOTING, VmmState.RUNNING:
                vm.enter(VmState.RUNNING)
                vm.happened(VmStarted, driver=vm.record.driver, simulated=vm.record.simulated)
            case VmState.BOOTING, _:
                await self._incarnations.end_by_force(vm)
            case VmState.RUNNING, VmmState.PAUSED:
                vm.enter(VmState.PAUSED)
            case VmState.PAUSED, VmmState.RUNNING:
                vm.enter(VmState.RUNNING)
        await self._fleet.commit(vm)

    async def _resumed(
        self, vm: Vm, driver: Driver, vmm: Vmm, state: VmmState | None
    ) -> VmmState | None:
        """Let a guest go on that stood still only for a snapshot that was cut off."""
        if vm.record.state is not VmState.RUNNING or state is not VmmState.PAUSED:
            return state
        try:
            await driver.resume(vmm)
        except DriverError as error:
            _log.error("vmm.not_resumed", vm_id=str(vm.vm_id), error=str(error))
            return state
        return VmmState.RUNNING

    async def _last_reading(self, driver: Driver, vmm: Vmm, meter: VmMeter) -> None:
        try:
            async with asyncio.timeout(_LAST_READ_S):
                meter.device = await driver.counters(vmm)
        except (DriverError, TimeoutError) as error:
            _log.warning("counters.not_adopted", vm_id=str(vmm.vm_id), error=str(error))

    def _rebooted(self, start: Start) -> bool:
        """Whether the host has gone down since; nothing that a pid stands for now is ours."""
        return start.boot_id != self._host.processes.boot_id()

    async def _inspect(self, driver: Driver, vmm: Vmm, start: Start) -> VmmState | None:
        """What the VMM says; None if it hangs, which does not keep it from being metered."""
        if self._rebooted(start) or not self._host.processes.is_alive(vmm):
            return VmmState.GONE
        try:
            return await driver.inspect(vmm)
        except DriverError as error:
            _log.warning("vmm.silent", vm_id=str(vmm.vm_id), error=str(error))
            return None

    async def _gone(self, vm: Vm, driver: Driver, vmm: Vmm, meter: VmMeter, start: Start) -> None:
        """Settle a VMM that ended unseen: devices and tap still tell, time and CPU as last seen."""
        last = self._seen.get((vm.vm_id, vmm.incarnation), ZERO)
        meter.stop_clock(start.boottime_ns + last[0] * NS_PER_MS)
        final = meter.settle(now_ns=start.boottime_ns, cpu_ns=None)
        if self._rebooted(start):
            reason = ExitReason.HOST_REBOOTED
        else:
            reason = await self._incarnations.told_by_kernel(vmm, self._reason(driver, vmm))
        self._incarnations.stopped_unseen(vm, final, reason)
        await self._fleet.commit(vm)
        self._metering.settle(vm.record, vm.record.unsettled[-1])
        said = driver.last_words(vmm)
        try:
            await driver.destroy(vmm)
        except DriverError as error:
            _log.error("vmm.clean_up_failed", vm_id=str(vm.vm_id), error=str(error))
        await self._clear(vm)
        _log.warning(
            "vmm.ended_unseen",
            vm_id=str(vm.vm_id),
            incarnation=vmm.incarnation,
            reason=reason,
            said=said,
        )

    def _reason(self, driver: Driver, vmm: Vmm) -> ExitReason:
        try:
            return driver.exit_reason(vmm, None)
        except DriverError:
            return ExitReason.UNKNOWN

    async def _clear(self, vm: Vm) -> None:
        try:
            await self._incarnations.clear(vm)
        except (NetworkError, CgroupError) as error:
            _log.error("vmm.clean_up_failed", vm_id=str(vm.vm_id), error=str(error))
