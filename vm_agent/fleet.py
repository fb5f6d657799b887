"""The VMs of this host: their records, their locks, and what runs of them right now."""

from __future__ import annotations

import asyncio
from collections import Counter as Tally
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from runtime.clock import utc_now
from schemas.errors import ErrorInfo
from schemas.events import VmEvent
from schemas.ids import new_id
from schemas.vms import VmState, VmStatus
from vm_agent.drivers.abc import Driver, Vmm
from vm_agent.metering import VmMeter
from vm_agent.process import ExitStatus
from vm_agent.reporter import Desk, Reporter, Spawn
from vm_agent.states import advance
from vm_agent.store import DONE_KEPT, Current, Done, Record, RecordStore


@dataclass(frozen=True, slots=True)
class Exit:
    """The end of a VMM, and the CLOCK_BOOTTIME at which the agent saw it."""

    status: ExitStatus
    at_ns: int


@dataclass(slots=True, eq=False)
class Live:
    """A VMM that runs, or has just ended.

    Attributes:
        silent_since_ns: Monotonic time of the first question that it has not answered since it
            answered one; None while it answers.
    """

    vmm: Vmm
    driver: Driver
    meter: VmMeter
    silent_since_ns: int | None = None
    exited: asyncio.Future[Exit] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Vm:
    """One VM of this host.

    Attributes:
        record: What is on disk, or will be at the next `Fleet.commit`.
        lock: Held by whoever changes the VM: a command, or the end of its VMM.
        live: Its VMM.
        dropped: Packets by reason that the host has dropped since this run of the agent began.
        dropped_unshown: Whether its status does not say so yet.
    """

    def __init__(self, record: Record, host_id: str) -> None:
        self.dropped: dict[str, int] = {}
        self.dropped_unshown = False
        self.record = record
        self.host_id = host_id
        self.lock = asyncio.Lock()
        self.live: Live | None = None
        self.writing = asyncio.Lock()
        self.unreported: list[VmStatus | VmEvent] = []

    @property
    def vm_id(self) -> UUID:
        """The VM's id."""
        return self.record.vm_id

    def stage(self, **changes: Any) -> None:
        """Change the record in memory; `Fleet.commit` makes it durable and reports it."""
        self.record = msgspec.structs.replace(self.record, **changes)

    def enter(self, state: VmState, **changes: Any) -> None:
        """Stage a transition and the report of it.

        Raises:
            IllegalTransitionError: The state machine does not have it.
        """
        self.stage(state=advance(self.record.state, state), **changes)
        if self.live is not None:
            self.live.meter.state = state
        self.report_status()

    def report_status(self) -> None:
        """Stage the report of what is staged."""
        status = status_of(self.record, self.host_id)
        if self.dropped and self.record.state is not VmState.DELETED:
            status = msgspec.structs.replace(status, dropped=dict(self.dropped))
        self.unreported.append(status)

    def happened(self, kind: type[VmEvent], /, **details: Any) -> None:
        """Stage an event."""
        current = self.record.current
        event = kind(
            event_id=new_id(),
            at=utc_now(),
            customer_id=self.record.customer_id,
            vm_id=self.record.vm_id,
            host_id=self.host_id,
            incarnation=self.record.incarnation,
            command_id=current.command_id if current else None,
            **details,
        )
        self.stage(outbox=(*self.record.outbox, event))
        self.unreported.append(event)


def status_of(record: Record, host_id: str, at: datetime | None = None) -> VmStatus:
    """What `vm_status` says of a VM."""
    return VmStatus(
        vm_id=record.vm_id,
        customer_id=record.customer_id,
        host_id=host_id,
        state=record.state,
        incarnation=record.incarnation,
        driver=record.driver,
        simulated=record.simulated,
        started_at=record.start.at if record.start else None,
        final_counters=record.final_counters,
        exit_reason=record.exit_reason,
        last_error=record.last_error,
        failures=record.failures,
        restart_at=record.restart_at,
        snapshots=() if record.state is VmState.DELETED else record.snapshots,
        updated_at=at or utc_now(),
        addresses=_addresses(record),
        quarantined=record.quarantined,
    )


def _addresses(record: Record) -> tuple[str, ...]:
    """Where a VM can be reached, or will be once it runs; nowhere if it is not connected."""
    gone = record.state is VmState.DELETED or (record.nic is not None and not record.nic.fabric)
    return () if record.lease is None or gone else record.lease.addresses


class Fleet:
    """All VMs, by id.

    Args:
        host_id: This host.
        store: Where records are kept.
        desk: Where reports go.
        spawn: Starts a named task in the agent's group.
    """

    def __init__(self, host_id: str, store: RecordStore, desk: Desk, spawn: Spawn) -> None:
        self.host_id = host_id
        self.reporter = Reporter(desk, spawn, self._published)
        self._store = store
        self._vms: dict[UUID, Vm] = {}

    @property
    def vms(self) -> tuple[Vm, ...]:
        """All VMs, deleted ones included as long as something is left to tell of them."""
        return tuple(self._vms.values())

    @property
    def present(self) -> int:
        """VMs that are here, stopped and failed ones included."""
        return sum(vm.record.state is not VmState.DELETED for vm in self._vms.values())

    def get(self, vm_id: UUID) -> Vm | None:
        """A VM of this host."""
        return self._vms.get(vm_id)

    def add(self, record: Record) -> Vm:
        """Take a VM in; `commit` makes it durable."""
        vm = self._vms[record.vm_id] = Vm(record, self.host_id)
        return vm

    def by_state(self) -> Mapping[str, int]:
        """Number of VMs per state, all states named."""
        tally = Tally(vm.record.state for vm in self._vms.values())
        return {state.value: tally[state] for state in VmState}

    async def commit(self, vm: Vm) -> None:
        """Make what was staged durable, then let it be reported."""
        reports, vm.unreported = vm.unreported, []
        async with vm.writing:
            await asyncio.to_thread(self._store.put, vm.record)
        for report in reports:
            self.reporter.report(report)

    async def begin(self, vm: Vm, command_id: UUID, verb: str, digest: str) -> None:
        """Note durably that a command is at work, so that a crash leaves it half done, not lost."""
        vm.stage(
            current=Current(
                command_id=command_id,
                verb=verb,
                incarnation=vm.record.incarnation,
                digest=digest,
            )
        )
        await self.commit(vm)

    async def finish(
        self, vm: Vm, command_id: UUID, verb: str, error: ErrorInfo | None, digest: str
    ) -> Done:
        """Commit what was staged together with the command's result."""
        done = Done(
            command_id=command_id,
            verb=verb,
            state=vm.record.state,
            error=error,
            finished_at=utc_now(),
            digest=digest,
        )
        vm.stage(current=None, done=(*vm.record.done, done)[-DONE_KEPT:])
        await self.commit(vm)
        return done

    def replay(self, vm: Vm) -> None:
        """Report anew what an earlier run may not have got through."""
        vm.unreported.clear()
        self.reporter.report(status_of(vm.record, self.host_id))
        for event in vm.record.outbox:
            self.reporter.report(event)

    async def settled(self, vm_id: UUID, incarnation: int) -> None:
        """NATS has the final sample of an incarnation."""
        vm = self._vms.get(vm_id)
        if vm is None:
            return
        left = tuple(s for s in vm.record.unsettled if s.incarnation != incarnation)
        if len(left) < len(vm.record.unsettled):
            vm.stage(unsettled=left)
            await self.tidy(vm)

    async def answered(self, vm_id: UUID) -> None:
        """The command that deleted a VM is acknowledged; nothing happens to one that is not."""
        vm = self._vms.get(vm_id)
        if vm is not None and vm.record.state is VmState.DELETED and not vm.record.answered:
            vm.stage(answered=True)
            await self.tidy(vm)

    async def _published(self, event: VmEvent) -> None:
        vm = self._vms.get(event.vm_id)
        if vm is None:
            return
        left = tuple(e for e in vm.record.outbox if e.event_id != event.event_id)
        if len(left) < len(vm.record.outbox):
            vm.stage(outbox=left)
            await self.tidy(vm)

    async def tidy(self, vm: Vm) -> None:
        """Write the record, or remove it once nothing of a deleted VM is left to tell."""
        async with vm.writing:
            if vm.record.spent:
                await asyncio.to_thread(self._store.delete, vm.vm_id)
                self._vms.pop(vm.vm_id, None)
            else:
                await asyncio.to_thread(self._store.put, vm.record)
