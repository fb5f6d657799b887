"""The files of a snapshot, on their way out of a VMM and into another one.

A VMM reads and writes only in its run directory: it may be confined there, as a user of its own.
So a snapshot is written there and moved, and a snapshot to be restored is linked there, with its
configuration rewritten for the new machine.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from vm_agent.drivers.abc import DriverError, MachinePlan
from vm_agent.drivers.cloud_hypervisor_machine import SNAPSHOT_DIR, restored_config

CONFIG = "config.json"
STATE = "state.json"
MEMORY = "memory-ranges"

RESTORE_DIR = "restore"


def prepare(run_dir: Path) -> None:
    """Make the folder that the VMM may write snapshots to."""
    folder = run_dir / SNAPSHOT_DIR
    folder.mkdir(mode=0o700)
    _give(folder, run_dir)


def remove(run_dir: Path) -> None:
    """Remove both folders; nothing happens if they are not there."""
    for name in (SNAPSHOT_DIR, RESTORE_DIR):
        shutil.rmtree(run_dir / name, ignore_errors=True)


def empty(run_dir: Path) -> Path:
    """The folder for the VMM to write to, without what a failed snapshot has left there.

    Raises:
        DriverError: It cannot be emptied.
    """
    folder = run_dir / SNAPSHOT_DIR
    try:
        for path in folder.iterdir():
            path.unlink()
    except OSError as error:
        raise DriverError(f"cannot empty {folder}: {error}") from error
    return folder


def move(run_dir: Path, folder: Path) -> None:
    """Move what the VMM has written to where it was asked for.

    Raises:
        DriverError: A file is missing, or cannot be moved.
    """
    for name in (MEMORY, STATE, CONFIG):
        try:
            # A rename where both are on one file system.
            shutil.move(run_dir / SNAPSHOT_DIR / name, folder / name)
        except OSError as error:
            raise DriverError(f"cannot move the snapshot's {name}: {error}") from error


def link(plan: MachinePlan, source: Path, *, landlock: bool) -> Path:
    """Make the folder that a VMM is to be restored from.

    Raises:
        DriverError: The snapshot is damaged, or of another kind of machine.
    """
    folder = plan.run_dir / RESTORE_DIR
    try:
        config = restored_config((source / CONFIG).read_bytes(), plan, landlock=landlock)
        folder.mkdir(mode=0o700)
        (folder / CONFIG).write_bytes(config)
        for name in (STATE, MEMORY):
            (folder / name).symlink_to((source / name).resolve(strict=True))
    except OSError as error:
        raise DriverError(f"cannot read the snapshot in {source}: {error}") from error
    for path in (folder, folder / CONFIG):
        _give(path, plan.run_dir)
    return folder


def _give(path: Path, run_dir: Path) -> None:
    """Let the owner of the run directory, who the VMM runs as, have a file."""
    owner = run_dir.stat()
    os.chown(path, owner.st_uid, owner.st_gid)
