"""Snapshots: looked at from memory; taken, restored and thrown away by the VM's host."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from gateway import acts
from gateway.auth import Principal, Scope
from gateway.cursors import Position, digest, seal, unseal
from gateway.errors import RefusedError, no_such_vm
from gateway.fleet import Fleet
from gateway.operations import Operations
from gateway.quotas import Quotas
from gateway.service import Outcome, VmService
from gateway.snapshot_index import Kept
from schemas.api import SnapshotList, SnapshotView
from schemas.errors import ErrorCode
from schemas.hosts import Operation, OperationStatus
from schemas.quotas import Amounts
from schemas.subjects import vm_key
from schemas.vms import SnapshotKind, VmRecord

_ONE = Amounts(snapshots=1)
_TAKEN_WITHIN = timedelta(minutes=10)
"""So long a snapshot counts of which nothing is heard; a large memory takes its time."""


class SnapshotService:
    """Every question and every mutation about snapshots. See `VmService` for what all raise.

    A foreign snapshot, a missing one and one whose VM is deleted are the same to it.

    Args:
        fleet: Knows which snapshots there are.
        vms: Does what is to be done to VMs.
        operations: Tells which snapshots were not taken, or are gone.
        quotas: Says whether there may be one more.
    """

    def __init__(
        self, fleet: Fleet, vms: VmService, operations: Operations, quotas: Quotas
    ) -> None:
        self._fleet = fleet
        self._vms = vms
        self._quotas = quotas
        operations.listen(self._note_end)

    def page(
        self, principal: Principal, *, vm_id: UUID | None, cursor: str, limit: int
    ) -> SnapshotList:
        """Snapshots in the order in which they were asked for, of all VMs or of one.

        Raises:
            RefusedError: NOT_FOUND if there is no such VM; BAD_REQUEST for a wrong cursor.
        """
        principal.require(Scope.VMS_READ)
        customer_id = principal.customer_id
        query = digest("snapshots", customer_id, str(vm_id))
        begin = unseal(query, cursor)
        last = begin.item_id if begin else None
        if vm_id is None:
            found = self._of_all(customer_id, last, limit + 1)
        else:
            found = self._of_vm(customer_id, vm_id, last)
        shown = found[:limit]
        more = len(found) > limit
        return SnapshotList(
            snapshots=tuple(kept.view for kept in shown),
            next_cursor=seal(query, Position("", shown[-1].info.snapshot_id)) if more else "",
        )

    def get(self, principal: Principal, snapshot_id: UUID) -> SnapshotView:
        """One snapshot."""
        principal.require(Scope.VMS_READ)
        kept = self._known(principal.customer_id, snapshot_id)
        if kept is None:
            raise no_such_snapshot()
        return kept.view

    async def take(
        self,
        principal: Principal,
        vm_id: UUID,
        kind: SnapshotKind = SnapshotKind.FULL,
        wait_s: float = 0.0,
    ) -> Outcome:
        """Take a snapshot of a VM that runs or is paused; the operation names it.

        Raises:
            RefusedError: FORBIDDEN, there would be more than the customer may have.
        """
        customer_id, snapshot_id = principal.customer_id, acts.mint("snapshot")

        async def within_quota(_: VmRecord) -> None:
            await self._quotas.reserve(customer_id, str(snapshot_id), _ONE, _TAKEN_WITHIN)

        fields = {"snapshot_id": snapshot_id, "kind": kind}
        try:
            return await self._vms.act(
                principal, vm_id, "snapshot", fields=fields, permit=within_quota, wait_s=wait_s
            )
        except RefusedError as error:
            # One that is unavailable may have been asked for all the same.
            if error.code is not ErrorCode.UNAVAILABLE:
                self._quotas.release(customer_id, str(snapshot_id))
            raise

    async def restore(
        self, principal: Principal, vm_id: UUID, snapshot_id: UUID, wait_s: float = 0.0
    ) -> Outcome:
        """Start a VM that is stopped, or was never started, from a snapshot.

        Raises:
            RefusedError: NOT_FOUND for VM or snapshot; CONFLICT if they are on different hosts.
        """

        async def beside(record: VmRecord) -> None:
            kept = await self._find(principal.customer_id, snapshot_id)
            if record.host_id != kept.host_id:
                raise RefusedError(
                    ErrorCode.CONFLICT,
                    "The snapshot is not where this VM is, so the VM cannot be restored from it.",
                )

        fields = {"snapshot_id": snapshot_id}
        return await self._vms.act(
            principal, vm_id, "restore", fields=fields, permit=beside, wait_s=wait_s
        )

    async def discard(
        self, principal: Principal, snapshot_id: UUID, wait_s: float = 0.0
    ) -> Outcome:
        """Throw a snapshot away; VMs that run from it go on."""
        principal.require(Scope.VMS_WRITE)
        # An earlier try of this very request may have thrown it away already.
        earlier = await self._vms.earlier()
        if earlier is None:
            vm_id = (await self._find(principal.customer_id, snapshot_id)).vm_id
        else:
            vm_id = earlier.vm_id
        fields = {"snapshot_id": snapshot_id}
        return await self._vms.act(principal, vm_id, "discard", fields=fields, wait_s=wait_s)

    def _note_end(self, operation: Operation) -> None:
        if operation.snapshot_id is None or not operation.finished:
            return
        succeeded = operation.status is OperationStatus.SUCCEEDED
        if (operation.verb == "snapshot" and not succeeded) or (
            operation.verb == "discard" and succeeded
        ):
            self._quotas.release(operation.customer_id, str(operation.snapshot_id))

    async def _find(self, customer_id: str, snapshot_id: UUID) -> Kept:
        kept = self._known(customer_id, snapshot_id)
        if kept is None:
            # Unknown here is not yet proof: its host may have just told of it.
            await self._fleet.status_heard()
            kept = self._known(customer_id, snapshot_id)
        if kept is None:
            raise no_such_snapshot()
        return kept

    def _known(self, customer_id: str, snapshot_id: UUID) -> Kept | None:
        kept = self._fleet.snapshots.get(customer_id, snapshot_id)
        return kept if kept is not None and self._stands(customer_id, kept) else None

    def _stands(self, customer_id: str, kept: Kept) -> bool:
        """Whether there is the VM, and it is its own host that tells of the snapshot."""
        record = self._fleet.record(vm_key(customer_id, kept.vm_id))
        return record is not None and record.deleted_at is None and record.host_id == kept.host_id

    def _of_all(self, customer_id: str, last: UUID | None, count: int) -> list[Kept]:
        found: list[Kept] = []
        while len(found) < count:
            more = self._fleet.snapshots.after(customer_id, last, count)
            found += [kept for kept in more if self._stands(customer_id, kept)]
            if len(more) < count:
                break
            last = more[-1].info.snapshot_id
        return found[:count]

    def _of_vm(self, customer_id: str, vm_id: UUID, last: UUID | None) -> list[Kept]:
        if self._fleet.get(customer_id, vm_id) is None:
            raise no_such_vm()
        status = self._fleet.status(vm_key(customer_id, vm_id))
        if status is None:
            return []
        found = [Kept(info, vm_id, status.host_id) for info in status.snapshots]
        found.sort(key=lambda kept: kept.info.snapshot_id)
        return [
            kept
            for kept in found
            if self._stands(customer_id, kept) and (last is None or kept.info.snapshot_id > last)
        ]


def no_such_snapshot() -> RefusedError:
    """A snapshot that is missing, gone, or another customer's: one answer for all three."""
    return RefusedError(ErrorCode.NOT_FOUND, "There is no such snapshot.")
