"""What a VMM writes of its own accord, beside its guest's console: kept short, and quoted.

A guest can make its VMM complain as often as it likes, and some VMMs write at their own position,
so the file is not cut but freed behind its end.
"""

from __future__ import annotations

import os
from pathlib import Path

from vm_agent.drivers.holes import punch_hole
from vm_agent.drivers.hostile import open_plain

_KEPT_BYTES = 64 * 1024
_MAX_BYTES = 1024 * 1024
_QUOTED_BYTES = 2048
_QUOTED_LINES = 3
_PAGE = 4096
_BLOCK_BYTES = 512  # the unit of st_blocks, stat(2)


def trim_log(path: Path) -> None:
    """Free the older part of a long log; nothing happens if it is not there."""
    try:
        descriptor = open_plain(path, os.O_RDWR)
    except OSError:
        return
    try:
        status = os.fstat(descriptor)
        if status.st_blocks * _BLOCK_BYTES > _MAX_BYTES:
            kept = status.st_size - _KEPT_BYTES
            punch_hole(descriptor, 0, kept - kept % _PAGE)
    finally:
        os.close(descriptor)


def read_log(path: Path, limit_bytes: int = _KEPT_BYTES) -> bytes:
    """The end of a log; empty if it cannot be read."""
    try:
        with os.fdopen(open_plain(path, os.O_RDONLY), "rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - limit_bytes))
            return log.read(limit_bytes)
    except OSError:
        return b""


def last_words(path: Path) -> str:
    """The last lines of a log, for an error message; empty if there are none."""
    lines = read_log(path, _QUOTED_BYTES).decode(errors="replace").strip("\0 \r\n").splitlines()
    return " | ".join(line.strip() for line in lines[-_QUOTED_LINES:])
