"""The verbs: what each command does to a VM, once, however often it is delivered.

A command notes itself in the VM's record before it does anything and leaves its result there
together with what it did. So a delivery finds it not begun, half done or finished, and begins,
goes on, or repeats the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from uuid import UUID

import msgspec
import structlog

from runtime.clock import utc_now
from schemas.commands import (
    BootVm,
    Command,
    CreateVm,
    DeleteVm,
    DiscardSnapshot,
    PauseVm,
    RebootVm,
    RestoreVm,
    ResumeVm,
    ShutdownVm,
    SnapshotVm,
)
from schemas.errors import ErrorCode, ErrorInfo
from schemas.events import VmCreated, VmDeleted, VmFailed, VmPaused, VmResumed
from schemas.vms import VmSpec, VmState
from schemas.wishes import Apart
from vm_agent.admission import Admission
from vm_agent.cgroups import CgroupError
from vm_agent.connecting import Connecting
from vm_agent.disks import Disks, disk_bytes, remove_disk, with_disk
from vm_agent.drivers.abc import Ability, DriverError
from vm_agent.fleet import Fleet, Live, Vm
from vm_agent.incarnations import Incarnations
from vm_agent.network.taps import NetworkError
from vm_agent.places import Places
from vm_agent.ports import Host
from vm_agent.scrutiny import Objection, objection
from vm_agent.snapshotting import Snapshotting
from vm_agent.states import RefusedError, permit
from vm_agent.store import Current, Done, Record
from vm_agent.wishes import Offer, require, suit

_log = structlog.get_logger("decisec.lifecycle")

_S = VmState


class Lifecycle:
    """Executes commands. Those of one VM must come one after the other.

    Args:
        host: The host.
        fleet: Its VMs.
        places: Where VMMs live.
        incarnations: Starts and ends VMMs.
        admission: What the host has left.
        snapshots: Takes and restores them.
        connecting: Gives them addresses.
        offer: What the host has to offer to those who are particular about it.
        draining: Says whether new VMs are refused. Those that are here may do everything.
        now: The wall clock, for deadlines.
    """

    def __init__(
        self,
        host: Host,
        fleet: Fleet,
        places: Places,
        incarnations: Incarnations,
        admission: Admission,
        snapshots: Snapshotting,
        connecting: Connecting,
        *,
        offer: Offer | None = None,
        draining: Callable[[], bool] = lambda: False,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._host = host
        self._fleet = fleet
        self._places = places
        self._incarnations = incarnations
        self._admission = admission
        self._snapshots = snapshots
        self._connecting = connecting
        self._offer = offer or Offer(driver=host.driver.name)
        self._draining = draining
        self._now = now
        self._disks = Disks()

    def result_of(self, command: Command) -> Done | None:
        """The result that stands in the VM's record, if the command is finished."""
        vm = self._fleet.get(command.vm_id)
        if vm is None or vm.record.customer_id != command.customer_id:
            return None
        return vm.record.result_of(command.command_id)

    async def answered(self, command: Command) -> None:
        """The command is acknowledged: a VM that it deleted can be forgotten."""
        if isinstance(command, DeleteVm) and self.result_of(command) is not None:
            await self._fleet.answered(command.vm_id)

    def objection(self, command: Command, digest: str) -> Objection | None:
        """What speaks against a command that has no result, unless it is at work already."""
        vm = self._fleet.get(command.vm_id)
        record = vm.record if vm is not None else None
        if record is not None and record.customer_id == command.customer_id:
            begun = record.current
            if begun is not None and begun.is_of(command.command_id, digest):
                return None
        return objection(command, record, self._now())

    async def execute(self, command: Command, digest: str = "") -> Done:
        """Carry a command out, or go on with it, or repeat its result. Safe to cancel."""
        vm = self._fleet.get(command.vm_id)
        if vm is not None and vm.record.customer_id != command.customer_id:
            vm = None
        try:
            return await self._dispatch(command, vm, digest)
        except RefusedError as error:
            # Nothing was begun, so nothing is in the record.
            return Done(
                command_id=command.command_id,
                verb=command.verb,
                state=vm.record.state if vm else None,
                error=error.info,
                finished_at=self._now(),
            )

    async def _dispatch(self, command: Command, vm: Vm | None, digest: str) -> Done:
        if isinstance(command, CreateVm):
            return await self._create(command, vm, digest)
        if vm is None:
            raise RefusedError(ErrorCode.NOT_FOUND, "there is no such VM")
        async with vm.lock:
            return await self._on(vm, command, digest)

    async def _on(self, vm: Vm, command: Command, digest: str) -> Done:
        if (done := vm.record.result_of(command.command_id)) is not None:
            return done
        begun = vm.record.current
        if begun is None or not begun.is_of(command.command_id, digest):
            if vm.record.state is _S.DELETED:
                raise RefusedError(ErrorCode.NOT_FOUND, "there is no such VM")
            self._in_time(command)
            if not (vm.record.restart_at and isinstance(command, ShutdownVm)):
                permit(command.verb, vm.record.state)
            await self._fleet.begin(vm, command.command_id, command.verb, digest)
        begun = vm.record.current
        if begun is None:
            raise RuntimeError("a command that was begun is not in the record")
        error = await self._attempt(vm, command, begun)
        return await self._fleet.finish(vm, command.command_id, command.verb, error, digest)

    async def _attempt(self, vm: Vm, command: Command, begun: Current) -> ErrorInfo | None:
        try:
            match command:
                case BootVm():
                    await self._boot(vm, begun)
                case ShutdownVm():
                    await self._shutdown(vm, command.grace_s)
                case DeleteVm():
                    await self._delete(vm)
                case PauseVm():
                    await self._pause(vm)
                case ResumeVm():
                    await self._resume(vm)
                case SnapshotVm():
                    live = self._live(vm)
                    await self._snapshots.take(vm, live, command.snapshot_id, command.kind)
                case RestoreVm():
                    await self._restore(vm, begun, command.snapshot_id)
                case DiscardSnapshot():
                    await self._snapshots.discard(vm, command.snapshot_id)
                case RebootVm():
                    await self._reboot(vm, begun, command.grace_s)
        except RefusedError as error:
            return error.info
        except (DriverError, NetworkError, CgroupError, OSError) as error:
            _log.warning("command.failed", verb=command.verb, error=str(error))
            return ErrorInfo(code=ErrorCode.HYPERVISOR_FAILED, message=str(error))
        return None

    def _in_time(self, command: Command) -> None:
        if self._now() > command.deadline:
            raise RefusedError(
                ErrorCode.DEADLINE_EXCEEDED, "the command's deadline passed before it began"
            )

    async def _create(self, command: CreateVm, vm: Vm | None, digest: str) -> Done:
        if vm is None:
            if self._fleet.get(command.vm_id) is not None:
                raise RefusedError(ErrorCode.NOT_FOUND, "there is no such VM")
            self._in_time(command)
            vm = await self._admit(command, digest)
        async with vm.lock:
            if (done := vm.record.result_of(command.command_id)) is not None:
                return done
            begun = vm.record.current
            if begun is None or not begun.is_of(command.command_id, digest):
                raise RefusedError(ErrorCode.CONFLICT, "this VM exists")
            error: ErrorInfo | None = None
            try:
                await self._make_disk(vm, command.spec)
            except RefusedError as refused:
                error = refused.info
            except OSError as cause:
                error = ErrorInfo(code=ErrorCode.INTERNAL, message=f"no disk: {cause.strerror}")
            if error is not None:
                vm.enter(_S.FAILED, last_error=error)
                vm.happened(VmFailed, error=error)
            else:
                vm.enter(_S.CREATED)
                vm.happened(VmCreated)
            return await self._fleet.finish(vm, command.command_id, command.verb, error, digest)

    async def _admit(self, command: CreateVm, digest: str) -> Vm:
        """Reserve what the VM needs and take it in. What is refused here leaves no trace."""
        self._not_draining()
        suit(command, self._offer)
        image = await self._host.images.prepare_new(self._host.driver.name, command.spec)
        # The order may have come meanwhile. From here on the VM counts as one that is here.
        self._not_draining()
        spec = with_disk(command.spec, image.rootfs_bytes)
        require(spec, self._host.driver, connects=self._host.networks.connects)
        self._apart(command)
        self._admission.reserve(command.vm_id, spec)
        try:
            uid = self._places.uid_of(command.vm_id)
            lease = await self._connecting.lease(command.vm_id, command.customer_id, spec)
        except BaseException:
            self._admission.release(command.vm_id)
            await self._places.forget(command.vm_id)
            raise
        record = Record(
            vm_id=command.vm_id,
            customer_id=command.customer_id,
            spec=spec,
            state=_S.PENDING,
            created_at=self._now(),
            driver=self._host.driver.name,
            simulated=self._host.driver.simulated,
            uid=uid,
            lease=lease,
            current=Current(
                command_id=command.command_id, verb="create", incarnation=0, digest=digest
            ),
        )
        vm = self._fleet.add(record)
        vm.enter(_S.CREATING)
        await self._fleet.commit(vm)
        return vm

    def _apart(self, command: CreateVm) -> None:
        """Refuse a VM that must not be beside one that is here: gateways may hear of it late."""
        if command.spec.placement.apart is Apart.REQUIRED and (kind := command.spec.kind):
            name, value = kind
            for other in self._fleet.vms:
                record = other.record
                if (
                    record.customer_id == command.customer_id
                    and record.state is not _S.DELETED
                    and record.spec.labels.get(name) == value
                ):
                    raise RefusedError(
                        ErrorCode.NO_CAPACITY, "the host has a VM that this one is to be apart from"
                    )

    def _not_draining(self) -> None:
        if self._draining():
            raise RefusedError(ErrorCode.NO_CAPACITY, "the host is draining")

    async def _make_disk(self, vm: Vm, spec: VmSpec) -> None:
        """Make the disk, if there is to be one; one that is there from an earlier try is kept."""
        if not vm.record.spec.disk_mib:
            return
        image = await self._host.images.prepare_new(self._host.driver.name, spec)
        # Its owner may have changed the labels since; nothing here goes by them.
        wanted = msgspec.structs.replace(spec, labels=vm.record.spec.labels)
        if with_disk(wanted, image.rootfs_bytes) != vm.record.spec:
            raise RefusedError(
                ErrorCode.CONFLICT, f"image {spec.image!r} was replaced meanwhile; make a new VM"
            )
        size_bytes = disk_bytes(spec, image.rootfs_bytes)
        await self._disks.make(self._host.disk(vm.vm_id), size_bytes, image.rootfs)

    async def _boot(self, vm: Vm, begun: Current) -> None:
        if vm.record.state is _S.RUNNING and vm.record.incarnation > begun.incarnation:
            return
        vm.stage(failures=0)
        await self._incarnations.start(vm)

    async def _restore(self, vm: Vm, begun: Current, snapshot_id: UUID) -> None:
        if vm.record.state is _S.RUNNING and vm.record.incarnation > begun.incarnation:
            return
        vm.stage(failures=0)
        await self._snapshots.restore(vm, snapshot_id)

    async def _shutdown(self, vm: Vm, grace_s: float) -> None:
        if vm.record.state is _S.STOPPED:
            if vm.record.restart_at is not None:
                vm.stage(restart_at=None)
                vm.report_status()
            return
        live = self._live(vm)
        if vm.record.state is not _S.STOPPING:
            was_paused = vm.record.state is _S.PAUSED
            vm.enter(_S.STOPPING)
            await self._fleet.commit(vm)
            if was_paused:
                # A guest that stands still cannot hear the request.
                await live.driver.resume(live.vmm)
        if grace_s > 0:
            try:
                await live.driver.shutdown(live.vmm)
            except DriverError as error:
                _log.warning("guest.not_asked", vm_id=str(vm.vm_id), error=str(error))
                grace_s = 0
        if not await self._incarnations.wait_end(vm, grace_s):
            await self._incarnations.end_by_force(vm)

    async def _delete(self, vm: Vm) -> None:
        if vm.record.state is _S.DELETED:
            return
        vm.stage(restart_at=None)
        if vm.live is not None:
            if vm.record.state is not _S.STOPPING:
                vm.enter(_S.STOPPING)
                await self._fleet.commit(vm)
            await self._incarnations.end_by_force(vm)
        if vm.record.state is not _S.DELETING:
            vm.enter(_S.DELETING)
            await self._fleet.commit(vm)
        await self._incarnations.clear(vm)
        await self._snapshots.discard_all(vm)
        await asyncio.to_thread(remove_disk, self._host.disk(vm.vm_id))
        await self._places.forget(vm.vm_id)
        self._admission.release(vm.vm_id)
        vm.enter(_S.DELETED)
        vm.happened(VmDeleted)

    async def _pause(self, vm: Vm) -> None:
        if vm.record.state is _S.PAUSED:
            return
        live = self._live(vm)
        self._able(live, Ability.PAUSE)
        await live.driver.pause(live.vmm)
        vm.enter(_S.PAUSED)
        vm.happened(VmPaused)

    async def _resume(self, vm: Vm) -> None:
        if vm.record.state is _S.RUNNING:
            return
        live = self._live(vm)
        await live.driver.resume(live.vmm)
        vm.enter(_S.RUNNING)
        vm.happened(VmResumed)

    async def _reboot(self, vm: Vm, begun: Current, grace_s: float) -> None:
        if vm.record.incarnation == begun.incarnation:
            await self._shutdown(vm, grace_s)
        await self._boot(vm, begun)

    def _live(self, vm: Vm) -> Live:
        if vm.live is None:
            raise RefusedError(
                ErrorCode.ILLEGAL_TRANSITION, f"the VM has ended by itself: {vm.record.state}"
            )
        return vm.live

    def _able(self, live: Live, ability: Ability) -> None:
        if ability not in live.driver.abilities:
            raise RefusedError(ErrorCode.UNSUPPORTED, f"{live.driver.name} cannot {ability} a VM")
