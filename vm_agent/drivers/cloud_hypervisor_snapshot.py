"""The files of a snapshot, on their way out of a VMM and into another one.

A VMM reads and writes only in its own directory, as a user of its own. So a snapshot is written
there and moved, and a snapshot to be restored is linked there, with its configuration rewritten
for the new machine.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from vm_agent.drivers.abc import DriverError, MachinePlan
from vm_agent.drivers.cloud_hypervisor_machine import SNAPSHOT_DIR as SNAPSHOT_DIR
from vm_agent.drivers.cloud_hypervisor_machine import restored_config
from vm_agent.drivers.hostile import folder_of, take_out
from vm_agent.drivers.jail import place_readable

CONFIG = "config.json"
STATE = "state.json"
MEMORY = "memory-ranges"

RESTORE_DIR = "restore"


def prepare(home: Path) -> None:
    """Make the folder that the VMM may write snapshots to."""
    folder = home / SNAPSHOT_DIR
    folder.mkdir(mode=0o700)
    _give(folder, home)


def empty(home: Path) -> None:
    """Remove what a failed snapshot has left in the folder for the VMM to write to.

    Raises:
        DriverError: It cannot be emptied.
    """
    folder = home / SNAPSHOT_DIR
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        _give(folder, home)
    except OSError as error:
        raise DriverError(f"cannot empty {folder}: {error}") from error


def move(home: Path, folder: Path) -> None:
    """Move what the VMM has written to where it was asked for.

    Raises:
        DriverError: A file is missing, or cannot be moved.
    """
    try:
        with folder_of(home, SNAPSHOT_DIR) as source:
            for name in (MEMORY, STATE, CONFIG):
                take_out(source, name, folder / name)
    except OSError as error:
        raise DriverError(f"cannot move the snapshot: {error}") from error


def link(plan: MachinePlan, home: Path, source: Path, *, landlock: bool) -> None:
    """Make the folder that a VMM is to be restored from.

    Args:
        plan: The machine as the VMM sees it.
        home: Where the VMM works.
        source: The snapshot.
        landlock: Whether the VMM confines itself to its files.

    Raises:
        DriverError: The snapshot is damaged, or of another kind of machine.
    """
    folder = home / RESTORE_DIR
    try:
        config = restored_config((source / CONFIG).read_bytes(), plan, landlock=landlock)
        folder.mkdir(mode=0o700)
        (folder / CONFIG).write_bytes(config)
        for name in (STATE, MEMORY):
            place_readable(source / name, folder / name)
    except OSError as error:
        raise DriverError(f"cannot read the snapshot in {source}: {error}") from error
    for path in (folder, folder / CONFIG):
        _give(path, home)


def _give(path: Path, home: Path) -> None:
    """Let the user that the VMM runs as have a file."""
    owner = home.stat()
    os.chown(path, owner.st_uid, owner.st_gid)
