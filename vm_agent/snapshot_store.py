"""Snapshots on this host's disk: whole or not there, and gone with the VM that they are of.

`<folder>/<vm>/<snapshot>/` holds what the driver wrote, a copy of the disk and a manifest. A
snapshot gets its name when all of that is there.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import msgspec
import structlog

from schemas.codec import decoder, encode
from schemas.errors import MalformedMessageError
from schemas.ids import CustomerId, VmId
from schemas.vms import SnapshotKind, Timestamp, VmSpec
from vm_agent.disks import sync

_log = structlog.get_logger("decisec.snapshots")

DISK = "disk.img"
_MANIFEST = "manifest.json"
_NEW = ".new-"


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a snapshot is of.

    Attributes:
        kind: How it was taken; at rest each one is whole.
        driver: Only the same driver can restore it.
        mac: The guest's network address, which comes back with its memory.
    """

    snapshot_id: VmId
    vm_id: VmId
    customer_id: CustomerId
    kind: SnapshotKind
    spec: VmSpec
    driver: str
    mac: str = ""
    created_at: Timestamp


_decode: Callable[[bytes], Manifest] = decoder(Manifest)


class SnapshotStore:
    """All snapshots of this host. Every call blocks on the disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self, vm_id: UUID, snapshot_id: UUID) -> Path:
        """An empty folder to fill; what an earlier try has left is gone."""
        folder = self._folder / str(vm_id) / f"{_NEW}{snapshot_id}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True)
        return folder

    def finish(self, folder: Path, manifest: Manifest) -> None:
        """Give a filled folder its name; it is durable when this returns."""
        (folder / _MANIFEST).write_bytes(encode(manifest))
        for path in (*folder.iterdir(), folder):
            sync(path)
        folder.rename(self.path(manifest))
        sync(folder.parent)

    def path(self, manifest: Manifest) -> Path:
        """Where a snapshot's files are."""
        return self._folder / str(manifest.vm_id) / str(manifest.snapshot_id)

    def find(self, snapshot_id: UUID) -> Manifest | None:
        """A snapshot of whatever VM."""
        for path in self._folder.glob(f"*/{snapshot_id}/{_MANIFEST}"):
            return _read(path)
        return None

    def of_vm(self, vm_id: UUID) -> list[Manifest]:
        """A VM's snapshots, oldest first."""
        found = map(_read, (self._folder / str(vm_id)).glob(f"[!.]*/{_MANIFEST}"))
        return sorted((m for m in found if m), key=lambda m: m.created_at)

    def all(self) -> list[Manifest]:
        """Every snapshot."""
        return [m for m in map(_read, self._folder.glob(f"*/[!.]*/{_MANIFEST}")) if m]

    def remove(self, vm_id: UUID, snapshot_id: UUID) -> None:
        """Remove one; nothing happens if it is gone."""
        folder = self._folder / str(vm_id) / str(snapshot_id)
        if folder.is_dir():
            # Renamed first: a removal that is cut short leaves no half a snapshot.
            leaving = folder.with_name(f"{_NEW}{snapshot_id}")
            shutil.rmtree(leaving, ignore_errors=True)
            folder.rename(leaving)
            shutil.rmtree(leaving)

    def remove_all(self, vm_id: UUID) -> None:
        """Remove all of a VM's."""
        shutil.rmtree(self._folder / str(vm_id), ignore_errors=True)

    def sweep(self, vm_ids: frozenset[UUID]) -> None:
        """Remove what is unfinished, and what is of none of these VMs."""
        for folder in self._folder.glob("*"):
            if folder.name not in map(str, vm_ids):
                shutil.rmtree(folder, ignore_errors=True)
        for leftover in self._folder.glob(f"*/{_NEW}*"):
            shutil.rmtree(leftover, ignore_errors=True)


def _read(path: Path) -> Manifest | None:
    try:
        return _decode(path.read_bytes())
    except (OSError, MalformedMessageError) as error:
        _log.error("snapshot.damaged", path=str(path), error=str(error))
        return None
