"""Firecracker's snapshot files: made by the VMM where it can write, taken from there by the agent.

Source: the vendor's `docs/snapshotting/snapshot-support.md`. A snapshot is the VM's state without
the content of its disk. The memory file of a running VM that was restored from it must stay as it
is; hence it gets another name in the VM's directory, and whoever deletes the snapshot takes away
the first name only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from schemas.vms import SnapshotKind
from vm_agent.disks import clone_file
from vm_agent.drivers.abc import MachinePlan
from vm_agent.drivers.hostile import folder_of, take_out
from vm_agent.drivers.jail import place_readable
from vm_agent.sparse import overlay

STATE, MEMORY = "vm.state", "vm.memory"
"""Files of a snapshot."""

_MADE = {STATE: "made.state", MEMORY: "made.memory"}
_GIVEN = {STATE: "given.state", MEMORY: "given.memory"}
FILES = (*_MADE.values(), *_GIVEN.values())
"""What may lie in the VMM's working directory. It gets relative names, jailed or not."""


def request_to_make(kind: SnapshotKind) -> dict[str, Any]:
    """Body of `PUT /snapshot/create`."""
    return {
        "snapshot_type": "Full" if kind is SnapshotKind.FULL else "Diff",
        "snapshot_path": _MADE[STATE],
        "mem_file_path": _MADE[MEMORY],
    }


def request_to_load(plan: MachinePlan) -> dict[str, Any]:
    """Body of `PUT /snapshot/load`: the guest stands still afterwards."""
    return {
        "snapshot_path": _GIVEN[STATE],
        "mem_backend": {"backend_path": _GIVEN[MEMORY], "backend_type": "File"},
        "enable_diff_snapshots": plan.track_memory,
        "resume_vm": False,
    }


def give(snapshot: Path, root: Path) -> None:
    """Put a snapshot's files where a VMM that is to load them finds them."""
    for name, given in _GIVEN.items():
        place_readable(snapshot / name, root / given)


def complete(folder: Path, base: Path) -> None:
    """Make a memory file that holds only what has changed hold everything."""
    whole = folder / f"{MEMORY}.whole"
    clone_file(base / MEMORY, whole)
    overlay(folder / MEMORY, whole)
    whole.chmod(0o444)
    whole.rename(folder / MEMORY)


def clear(root: Path) -> None:
    """Remove what an attempt that was cut short has left."""
    for name in _MADE.values():
        (root / name).unlink(missing_ok=True)


def take(root: Path, folder: Path) -> None:
    """Move what a VMM has written out of its reach.

    Raises:
        DriverError: It is no regular file: a link that a hostile VMM has put there instead.
    """
    with folder_of(root) as source:
        for name, made in _MADE.items():
            take_out(source, made, folder / name)
