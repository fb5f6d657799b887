"""Taking a VM's snapshot, going on from one, throwing one away.

Whoever calls holds the VM's lock. A snapshot is taken of a guest that stands still for it: a
running one is paused, and goes on whatever comes of the snapshot.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from uuid import UUID

from msgspec.structs import asdict, replace

from runtime.clock import utc_now
from schemas.errors import ErrorCode
from schemas.events import VmSnapshotted
from schemas.hosts import Resources
from schemas.vms import SnapshotInfo, SnapshotKind, VmSpec, VmState
from vm_agent.admission import Admission
from vm_agent.disks import clone_file, replace_disk
from vm_agent.drivers.abc import Ability, DiffSnapshots, Snapshots
from vm_agent.fleet import Fleet, Live, Vm
from vm_agent.incarnations import Incarnations
from vm_agent.ports import Host
from vm_agent.snapshot_store import DISK, Manifest, SnapshotStore
from vm_agent.states import RefusedError

PER_VM = 8
"""Snapshots that one VM may have at a time."""


class Snapshotting:
    """The three verbs about snapshots.

    Args:
        host: The host.
        fleet: Its VMs.
        incarnations: Starts VMs from snapshots.
        admission: Holds the disk space that snapshots take.
        store: Where they are.
    """

    def __init__(
        self,
        host: Host,
        fleet: Fleet,
        incarnations: Incarnations,
        admission: Admission,
        store: SnapshotStore,
    ) -> None:
        self._host = host
        self._fleet = fleet
        self._incarnations = incarnations
        self._admission = admission
        self._store = store

    async def adopt(self) -> None:
        """Count what is there, and remove what an agent that was killed has left half done.

        What VMs' statuses say of snapshots is made to agree with the disk.
        """
        vms = frozenset(vm.vm_id for vm in self._fleet.vms if vm.record.state is not _DELETED)
        await asyncio.to_thread(self._store.sweep, vms)
        present: dict[UUID, list[Manifest]] = {}
        for manifest in await asyncio.to_thread(self._store.all):
            self._admission.hold(manifest.snapshot_id, _needs(manifest))
            present.setdefault(manifest.vm_id, []).append(manifest)
        for vm in self._fleet.vms:
            if vm.record.state is not _DELETED and _tell(vm, present.get(vm.vm_id, [])):
                await self._fleet.commit(vm)

    async def take(self, vm: Vm, live: Live, snapshot_id: UUID, kind: SnapshotKind) -> None:
        """Take a snapshot under this id; nothing happens if there is one already.

        Raises:
            RefusedError: The driver cannot, there are too many, the host has no room.
            DriverError: The VMM failed; the guest goes on.
            OSError: The disk refuses.
        """
        if await asyncio.to_thread(self._store.find, snapshot_id) is not None:
            _tell(vm, await asyncio.to_thread(self._store.of_vm, vm.vm_id))
            return
        manifest = await self._admit(vm, live, snapshot_id, kind)
        try:
            folder = await asyncio.to_thread(self._store.begin, vm.vm_id, snapshot_id)
            try:
                await self._write(vm, live, folder, manifest)
            except BaseException:
                await asyncio.to_thread(shutil.rmtree, folder)
                raise
        except BaseException:
            self._admission.release(snapshot_id)
            raise
        vm.stage(snapshot_base=snapshot_id)
        _tell(vm, await asyncio.to_thread(self._store.of_vm, vm.vm_id))
        vm.happened(VmSnapshotted, snapshot_id=snapshot_id, kind=manifest.kind)

    async def restore(self, vm: Vm, snapshot_id: UUID) -> None:
        """Start the VM's next incarnation from a snapshot of this VM or another one of its owner.

        Raises:
            RefusedError: There is no such snapshot, or it is of a VM of another shape; or the
                start failed, and the VM is stopped as before, with the snapshot's disk.
            OSError: The disk refuses.
        """
        found = await asyncio.to_thread(self._store.find, snapshot_id)
        if found is None or found.customer_id != vm.record.customer_id:
            raise RefusedError(ErrorCode.NOT_FOUND, "there is no such snapshot")
        self._fits(vm, found)
        folder = self._store.path(found)
        if vm.record.spec.disk_mib:
            await asyncio.to_thread(replace_disk, self._host.disk(vm.vm_id), folder / DISK)
        await self._incarnations.start(vm, folder, found)

    async def discard(self, vm: Vm, snapshot_id: UUID) -> None:
        """Throw a snapshot away; nothing happens if it is gone. VMs that run from it go on."""
        if vm.record.snapshot_base == snapshot_id:
            vm.stage(snapshot_base=None)
            await self._fleet.commit(vm)
        await asyncio.to_thread(self._store.remove, vm.vm_id, snapshot_id)
        self._admission.release(snapshot_id)
        _tell(vm, await asyncio.to_thread(self._store.of_vm, vm.vm_id))

    async def discard_all(self, vm: Vm) -> None:
        """Throw all of a VM's snapshots away."""
        for manifest in await asyncio.to_thread(self._store.of_vm, vm.vm_id):
            self._admission.release(manifest.snapshot_id)
        await asyncio.to_thread(self._store.remove_all, vm.vm_id)

    async def _admit(self, vm: Vm, live: Live, snapshot_id: UUID, kind: SnapshotKind) -> Manifest:
        driver, record = live.driver, vm.record
        if Ability.SNAPSHOT not in driver.abilities:
            raise RefusedError(ErrorCode.UNSUPPORTED, f"{driver.name} cannot take snapshots")
        if kind is SnapshotKind.DIFF and (
            Ability.DIFF_SNAPSHOT not in driver.abilities or not record.spec.track_memory
        ):
            raise RefusedError(
                ErrorCode.UNSUPPORTED,
                "a diff snapshot needs a driver that can take one, and a VM with track_memory",
            )
        present = await asyncio.to_thread(self._store.of_vm, vm.vm_id)
        if len(present) >= PER_VM:
            raise RefusedError(
                ErrorCode.NO_CAPACITY, f"the VM has {PER_VM} snapshots: discard one first"
            )
        if kind is SnapshotKind.DIFF and record.snapshot_base not in {
            m.snapshot_id for m in present
        }:
            kind = SnapshotKind.FULL  # nothing is there that it could be a diff to
        manifest = Manifest(
            snapshot_id=snapshot_id,
            vm_id=vm.vm_id,
            customer_id=record.customer_id,
            kind=kind,
            spec=record.spec.without_secrets(),
            driver=driver.name,
            mac=record.nic.mac if record.nic else "",
            created_at=utc_now(),
        )
        self._admission.reserve_amount(snapshot_id, _needs(manifest), "the snapshot")
        return manifest

    async def _write(self, vm: Vm, live: Live, folder: Path, manifest: Manifest) -> None:
        driver = live.driver
        if not isinstance(driver, Snapshots):
            raise TypeError(f"{driver.name} says that it can take snapshots")
        base = vm.record.snapshot_base
        # The VMM forgets what has changed once it has written a snapshot. If that one is lost
        # then, the next one must be whole.
        vm.stage(snapshot_base=None)
        await self._fleet.commit(vm)
        await driver.pause(live.vmm)
        try:
            await driver.snapshot(live.vmm, folder, manifest.kind)
            if manifest.spec.disk_mib:
                await asyncio.to_thread(clone_file, self._host.disk(vm.vm_id), folder / DISK)
        finally:
            if vm.record.state is VmState.RUNNING:
                await driver.resume(live.vmm)
        if manifest.kind is SnapshotKind.DIFF and base is not None:
            diffs = live.driver
            if not isinstance(diffs, DiffSnapshots):
                raise TypeError(f"{diffs.name} says that it can take diffs")
            await diffs.complete(folder, self._store.path(replace(manifest, snapshot_id=base)))
        await asyncio.to_thread(self._store.finish, folder, manifest)

    def _fits(self, vm: Vm, found: Manifest) -> None:
        if found.driver != self._host.driver.name:
            raise RefusedError(
                ErrorCode.UNSUPPORTED,
                f"the snapshot is of {found.driver}, new VMs here get {self._host.driver.name}",
            )
        check_fit(vm.record.spec, found)


def _tell(vm: Vm, present: list[Manifest]) -> bool:
    """Stage that the VM has these snapshots, and the report of it, unless that is known."""
    told = tuple(
        SnapshotInfo(
            snapshot_id=manifest.snapshot_id,
            kind=manifest.kind,
            image=manifest.spec.image,
            vcpus=manifest.spec.vcpus,
            memory_mib=manifest.spec.memory_mib,
            disk_mib=manifest.spec.disk_mib,
            created_at=manifest.created_at,
        )
        for manifest in sorted(present, key=lambda one: one.created_at)
    )
    if told == vm.record.snapshots:
        return False
    vm.stage(snapshots=told)
    vm.report_status()
    return True


_DELETED = VmState.DELETED
_SAME = ("vcpus", "memory_mib", "disk_mib", "network", "track_memory", "balloon_mib")


def check_fit(spec: VmSpec, found: Manifest) -> None:
    """Check that a VM has the shape of the one that a snapshot is of.

    Raises:
        RefusedError: CONFLICT, naming the field.
    """
    shape = _shape(spec)
    for name, needed in _shape(found.spec).items():
        if shape[name] != needed:
            raise RefusedError(
                ErrorCode.CONFLICT,
                f"the snapshot is of a VM with {name} {needed}, this VM has {shape[name]}",
            )


def _shape(spec: VmSpec) -> dict[str, object]:
    """What a snapshot brings along, so that a VM that goes on from it must have just that.

    Metadata does not come along, but whether the guest can read any does.
    """
    return {
        **{name: getattr(spec, name) for name in _SAME},
        **{f"limits.{name}": limit for name, limit in asdict(spec.limits).items()},
        "metadata": "some" if spec.metadata else "none",
    }


def _needs(manifest: Manifest) -> Resources:
    """The disk space of a snapshot at most: memory and disk may share blocks with others."""
    return Resources(disk_mib=manifest.spec.memory_mib + manifest.spec.disk_mib)
