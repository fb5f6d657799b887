"""Whose which snapshot is, as the statuses of VMs tell."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass
from uuid import UUID

from schemas.api import SnapshotView
from schemas.errors import InvalidIdError
from schemas.subjects import parse_vm_key
from schemas.vms import SnapshotInfo, VmState, VmStatus


@dataclass(frozen=True, slots=True)
class Kept:
    """A snapshot, and where it is.

    Attributes:
        host_id: For the gateway itself; no customer is told.
    """

    info: SnapshotInfo
    vm_id: UUID
    host_id: str

    @property
    def view(self) -> SnapshotView:
        """As its owner sees it."""
        info = self.info
        return SnapshotView(
            snapshot_id=info.snapshot_id,
            vm_id=self.vm_id,
            kind=info.kind,
            image=info.image,
            vcpus=info.vcpus,
            memory_mib=info.memory_mib,
            disk_mib=info.disk_mib,
            created_at=info.created_at,
        )


class SnapshotIndex:
    """Snapshots by customer and id, kept up to date by the changes of VMs' statuses.

    Which customer a snapshot is of is what the status's key says, not the status.
    """

    def __init__(self) -> None:
        self._of_vm: dict[str, tuple[SnapshotInfo, ...]] = {}
        self._kept: dict[str, dict[UUID, Kept]] = {}
        self._ids: dict[str, list[UUID]] = {}

    def change(self, key: str, status: VmStatus | None) -> None:
        """Take over what a VM's status says, or that it is gone."""
        gone = status is None or status.state is VmState.DELETED
        now = () if status is None or gone else status.snapshots
        before = self._of_vm.get(key, ())
        if not before and not now:
            return
        try:
            customer_id, vm_id = parse_vm_key(key)
        except InvalidIdError:
            return
        for info in before:
            self._remove(customer_id, info.snapshot_id)
        for info in now:
            host_id = status.host_id if status is not None else ""
            self._add(customer_id, Kept(info, vm_id, host_id))
        if now:
            self._of_vm[key] = now
        else:
            self._of_vm.pop(key, None)

    def get(self, customer_id: str, snapshot_id: UUID) -> Kept | None:
        """A customer's snapshot."""
        return self._kept.get(customer_id, {}).get(snapshot_id)

    def count(self, customer_id: str) -> int:
        """How many a customer has."""
        return len(self._kept.get(customer_id, ()))

    def after(self, customer_id: str, last: UUID | None, count: int) -> list[Kept]:
        """A customer's snapshots in the order of their ids: up to `count` behind the last one."""
        ids = self._ids.get(customer_id, [])
        begin = 0 if last is None else bisect_right(ids, last)
        kept = self._kept.get(customer_id, {})
        return [kept[snapshot_id] for snapshot_id in ids[begin : begin + count]]

    def _add(self, customer_id: str, kept: Kept) -> None:
        snapshot_id = kept.info.snapshot_id
        shelf = self._kept.setdefault(customer_id, {})
        if snapshot_id not in shelf:
            insort(self._ids.setdefault(customer_id, []), snapshot_id)
        shelf[snapshot_id] = kept

    def _remove(self, customer_id: str, snapshot_id: UUID) -> None:
        shelf = self._kept.get(customer_id, {})
        if shelf.pop(snapshot_id, None) is None:
            return
        ids = self._ids[customer_id]
        del ids[bisect_left(ids, snapshot_id)]
        if not ids:
            del self._ids[customer_id], self._kept[customer_id]
