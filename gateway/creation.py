"""Creating a VM: placed, placed again if a host refuses, booted if asked for, undone if it fails.

Everything about a creation is in the buckets, under ids that follow from the VM's own. So a
gateway that is killed half way leaves nothing that the next one cannot pick up.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import UUID

import msgspec
import structlog

from gateway import acts
from gateway.attempts import MAX_ATTEMPTS, boot_id, create_id, refused_for_room
from gateway.background import Background
from gateway.commands import CommandDesk, operation_of
from gateway.creation_commands import boot_command, create_command, repeated_create
from gateway.errors import RefusedError, unavailable
from gateway.fleet import Fleet
from gateway.inventory import NOTHING_MADE
from gateway.ledger import amounts_of
from gateway.operations import Operations, failed, shown
from gateway.placement import need_of
from gateway.placing import Placer
from gateway.quotas import Quotas
from runtime.buckets import RevisionConflictError
from runtime.clock import utc_now
from runtime.errors import PoisonError, TransientError
from runtime.retry import forever
from schemas.errors import ErrorInfo
from schemas.hosts import Operation, OperationStatus
from schemas.subjects import vm_key
from schemas.vms import VmRecord, VmSpec, VmState

_log = structlog.get_logger("decisec.creation")

_ANSWER_MARGIN_S = 2.0
"""A command begun just before its deadline is still answered after it."""

_UNDONE_WITHIN_S = 1.0


class Creation:
    """Creates VMs.

    Args:
        fleet: Hosts and records.
        operations: Results.
        desk: The way to the agents.
        group: Holds the work that goes on after the caller has its answer.
        placer: Chooses hosts.
        quotas: Has the last word before anything is written.
        deadline_s: Time for the whole creation.
    """

    def __init__(
        self,
        fleet: Fleet,
        operations: Operations,
        desk: CommandDesk,
        group: Background,
        *,
        placer: Placer,
        quotas: Quotas,
        deadline_s: float,
    ) -> None:
        self._fleet = fleet
        self._operations = operations
        self._desk = desk
        self._group = group
        self._placer = placer
        self._quotas = quotas
        self._deadline_s = deadline_s
        self._under_way: dict[UUID, asyncio.Task[Operation | None]] = {}

    async def begin(
        self,
        customer_id: str,
        spec: VmSpec,
        *,
        name: str,
        pool: str,
        price_plan: str,
        boot: bool,
        requested_by: str,
    ) -> tuple[VmRecord, Operation, asyncio.Task[Operation | None] | None]:
        """Place a VM and store its first command.

        Returns:
            The record, the operation that ends when all that was asked for is done, and the
            work that goes on; its result is that operation's end. None at the end of this
            gateway: the next one does the work.

        Raises:
            RefusedError: NO_CAPACITY, UNKNOWN_IMAGE, FORBIDDEN for the quota, or UNAVAILABLE; no
                VM was made.
        """
        now = utc_now()
        vm_id = acts.mint("vm")
        choice = self._placer.choose(customer_id, vm_id, spec, pool, now)
        if choice.host is None:
            raise _refusal(choice.error)
        await self._quotas.reserve(customer_id, str(vm_id), amounts_of(need_of(spec)))
        # Chosen anew: nothing is awaited from here until the record counts, so that no other
        # request is given the same room, or a host that the VM is to have for itself.
        choice = self._placer.place(customer_id, vm_id, spec, pool, now)
        if (host := choice.host) is None:
            self._quotas.release(customer_id, str(vm_id))
            raise _refusal(choice.error)
        record = VmRecord(
            vm_id=vm_id,
            customer_id=customer_id,
            host_id=host.host_id,
            spec=spec,
            name=name,
            pool=pool,
            region=host.region,
            price_plan=price_plan,
            created_at=now,
        )
        key = vm_key(customer_id, vm_id)
        self._fleet.note(record)
        deadline = now + timedelta(seconds=self._deadline_s)
        told = boot_id(vm_id) if boot else create_id(vm_id, 0)
        try:
            await acts.commit(target=f"vm {vm_id}", operation_id=told)
        except RefusedError:
            self._placer.release(vm_id)
            self._quotas.release(customer_id, str(vm_id))
            self._fleet.forget(key)
            raise
        try:
            await self._fleet.specs.create(key, record)
            if boot:
                # Before the create: once that is published, nothing may fail the request.
                goal = operation_of(boot_command(record, now, deadline, requested_by))
                await self._operations.create(goal)
            command = create_command(record, 0, now, deadline, requested_by)
            operation = await self._desk.issue(msgspec.structs.replace(command, placed=choice.why))
        except RevisionConflictError as conflict:
            self._placer.release(vm_id)
            raise unavailable() from conflict  # an earlier try of this very request goes on
        except (RefusedError, TransientError) as error:
            # Settling takes the record away again, however long the bus is away; where it is
            # there, the caller hears of the failure after that.
            if undone := self._settle_later(record):
                await asyncio.wait({undone}, timeout=_UNDONE_WITHIN_S)
            raise error if isinstance(error, RefusedError) else unavailable() from error
        return record, goal if boot else operation, self._settle_later(record)

    async def earlier(
        self, customer_id: str, *, boot: bool, requested_by: str
    ) -> tuple[VmRecord, Operation, asyncio.Task[Operation | None] | None] | None:
        """Go on with what an earlier try of this very request has begun; see `begin`.

        Returns:
            As `begin` does; None if nothing was begun.

        Raises:
            RefusedError: The earlier try has failed, and no VM was made.
            TransientError: The server cannot be reached.
        """
        vm_id = acts.mint("vm")
        key = vm_key(customer_id, vm_id)
        entry = await self._fleet.specs.get(key)
        first = await self._operations.get(create_id(vm_id, 0))
        if entry is None:
            if first is None:
                return None
            error = first.error or unavailable().info
            raise RefusedError(error.code, error.message)
        record = entry.value
        goal = await self._operations.get(boot_id(vm_id))
        if first is None:
            await acts.commit(
                target=f"vm {vm_id}", operation_id=boot_id(vm_id) if boot else create_id(vm_id, 0)
            )
            now = utc_now()
            deadline = now + timedelta(seconds=self._deadline_s)
            if boot and goal is None:
                goal = operation_of(boot_command(record, now, deadline, requested_by))
                await self._operations.create(goal)
            first = operation_of(create_command(record, 0, now, deadline, requested_by))
            await self._operations.create(first)
            try:
                # Whoever was about to undo a create that has no operation finds the record moved.
                await self._fleet.specs.update(key, record, entry.revision)
            except RevisionConflictError as error:
                raise TransientError("this create is being settled elsewhere") from error
        if record.deleted_at is None:
            self._fleet.note(record)
            work = self._settle_later(record, resumed=True)
        else:
            work = self._group.spawn(_done(goal or first), name=f"creation-{vm_id}")
        return record, goal or first, work

    def resume(self) -> int:
        """Pick up creations that a gateway left; returns how many there may be."""
        count = 0
        for record in self._fleet.records():
            status = self._fleet.status(vm_key(record.customer_id, record.vm_id))
            if (
                status is None
                or status.host_id != record.host_id
                or status.state in (VmState.PENDING, VmState.CREATING, VmState.CREATED)
            ):
                self._settle_later(record, resumed=True)
                count += 1
        return count

    def _settle_later(
        self, record: VmRecord, *, resumed: bool = False
    ) -> asyncio.Task[Operation | None] | None:
        vm_id = record.vm_id
        if vm_id in self._under_way:
            return self._under_way[vm_id]
        try:
            task = self._group.spawn(self._persist(record, resumed), name=f"creation-{vm_id}")
        except RefusedError:
            _log.info("creation.left", vm_id=str(vm_id))
            return None
        self._under_way[vm_id] = task
        task.add_done_callback(lambda _: self._under_way.pop(vm_id, None))
        return task

    async def _persist(self, record: VmRecord, resumed: bool) -> Operation | None:
        try:
            async for attempt in forever("creation"):
                with attempt:
                    return await self._settle(record, resumed)
        except PoisonError as error:
            _log.error("creation.abandoned", vm_id=str(record.vm_id), error=str(error))
        return None

    async def _settle(self, record: VmRecord, resumed: bool) -> Operation | None:
        """Bring a creation to its end; every step finds out what was done already."""
        last = await self._settle_create(record, resumed)
        goal = await self._operations.bucket.get(str(boot_id(record.vm_id)))
        if last is None or last.status is OperationStatus.FAILED:
            error = (last.error if last else None) or unavailable().info
            if goal is not None and goal.value.status is OperationStatus.PENDING:
                # Never published, so still ours to end.
                await self._operations.fail(goal.value, error, goal.revision)
            await self._undo(record, error)
            return failed(goal.value, error, utc_now()) if goal else last
        if goal is None or goal.value.finished:
            return goal.value if goal else last
        boot = goal.value
        entry = await self._fleet.specs.get(vm_key(record.customer_id, record.vm_id))
        host_id = entry.value.host_id if entry else last.host_id
        if boot.status is OperationStatus.PENDING and utc_now() < boot.deadline:
            await self._desk.publish(
                boot_command(
                    record, boot.created_at, boot.deadline, boot.requested_by, host_id=host_id
                )
            )
        return await self._answer(boot) or boot

    async def _settle_create(self, record: VmRecord, resumed: bool) -> Operation | None:
        avoid: set[str] = set()
        operation: Operation | None = None
        for attempt in range(MAX_ATTEMPTS):
            found = await self._operations.get(create_id(record.vm_id, attempt))
            if found is None and operation is not None and refused_for_room(operation):
                if utc_now() >= operation.deadline:
                    return operation
                found = await self._place_again(record, operation, attempt, avoid)
            elif found is not None and not found.finished and resumed:
                # Its publish may not have happened; repeating one that has changes nothing.
                await self._desk.publish(repeated_create(record, found, attempt))
            if found is None:
                return operation
            operation = (
                await self._placer.begun(record, found, avoid)
                or await self._answer(found)
                or await self._overdue(found)
            )
            if not refused_for_room(operation):
                return operation
            avoid.add(operation.host_id)
        return operation

    async def _answer(self, operation: Operation) -> Operation | None:
        left_s = (operation.deadline - utc_now()).total_seconds() + _ANSWER_MARGIN_S
        # Asked at least once, so that a result that stands is found after the deadline too.
        return await self._operations.finished(operation.operation_id, max(left_s, 1.0))

    async def _overdue(self, operation: Operation) -> Operation:
        """A create without a result after its time; one that its host has begun is still its."""
        found = await self._operations.get(operation.operation_id) or operation
        return shown(found, found.deadline + _LATE)

    async def _place_again(
        self, record: VmRecord, refused: Operation, attempt: int, avoid: set[str]
    ) -> Operation | None:
        customer_id, vm_id = record.customer_id, record.vm_id
        choice = self._placer.place(customer_id, vm_id, record.spec, record.pool, utc_now(), avoid)
        if (host := choice.host) is None:
            return None
        key = vm_key(record.customer_id, record.vm_id)
        entry = await self._fleet.specs.get(key)
        if entry is None or entry.value.deleted_at is not None:
            self._placer.release(vm_id)
            return None
        moved = msgspec.structs.replace(entry.value, host_id=host.host_id, region=host.region)
        try:
            revision = await self._fleet.specs.update(key, moved, entry.revision)
        except RevisionConflictError as error:
            self._placer.release(vm_id)
            raise TransientError("another gateway places this VM as well") from error
        self._fleet.note(moved, revision)
        _log.info("vm.placed_again", vm_id=str(record.vm_id), host=host.host_id, attempt=attempt)
        command = create_command(moved, attempt, utc_now(), refused.deadline, refused.requested_by)
        try:
            return await self._desk.issue(msgspec.structs.replace(command, placed=choice.why))
        except RefusedError as error:
            raise TransientError(error.message) from error

    async def _undo(self, record: VmRecord, error: ErrorInfo) -> None:
        """Take away the record of a VM that was never made."""
        key = vm_key(record.customer_id, record.vm_id)
        status = await self._fleet.said(key, record.host_id)
        if status is not None and error.code not in NOTHING_MADE:
            return  # the agent holds something of it; its owner deletes it
        entry = await self._fleet.specs.get(key)
        first = await self._operations.get(create_id(record.vm_id, 0))
        if first is not None and not shown(first, utc_now()).finished:
            raise TransientError("this create was taken up again")
        try:
            await self._fleet.specs.delete(key, entry.revision if entry else None)
        except RevisionConflictError as conflict:
            raise TransientError("this create was taken up again") from conflict
        self._fleet.forget(key)
        self._quotas.release(record.customer_id, str(record.vm_id))
        _log.info("vm.not_created", vm_id=str(record.vm_id), code=error.code.value)


def _refusal(error: ErrorInfo) -> RefusedError:
    return RefusedError(error.code, error.message, retry_after_s=5.0)


async def _done(operation: Operation) -> Operation:
    return operation


_LATE = timedelta(microseconds=1)
