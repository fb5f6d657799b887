"""Cloud Hypervisor's own log: kept short, and asked for the one thing that nothing else tells.

A guest can make its VMM warn as often as it likes, and the VMM writes at its own position, so the
file is not cut but freed behind its end.
"""

from __future__ import annotations

import os
from pathlib import Path

from vm_agent.drivers.holes import punch_hole
from vm_agent.drivers.hostile import open_plain

LOG = "cloud-hypervisor.log"

_KEPT_BYTES = 64 * 1024
_MAX_BYTES = 1024 * 1024
_PAGE = 4096
_BLOCK_BYTES = 512  # the unit of st_blocks, stat(2)

_VCPU_FAILED = b"VCPU generated error"
"""What v53 logs before it ends, with exit code 0, because KVM could not go on."""


def trim_log(home: Path) -> None:
    """Free the older part of a long log."""
    try:
        descriptor = open_plain(home / LOG, os.O_RDWR)
    except OSError:
        return
    try:
        status = os.fstat(descriptor)
        if status.st_blocks * _BLOCK_BYTES > _MAX_BYTES:
            kept = status.st_size - _KEPT_BYTES
            punch_hole(descriptor, 0, kept - kept % _PAGE)
    finally:
        os.close(descriptor)


def vcpu_failed(home: Path) -> bool:
    """Whether the last thing of note was a virtual CPU that failed."""
    try:
        with os.fdopen(open_plain(home / LOG, os.O_RDONLY), "rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _KEPT_BYTES))
            return _VCPU_FAILED in log.read(_KEPT_BYTES)
    except OSError:
        return False
