"""Disk space given back from a file, or taken ahead, while another process goes on writing it."""

from __future__ import annotations

import ctypes

# fallocate(2), linux/falloc.h
_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02
_libc = ctypes.CDLL(None, use_errno=True)


def punch_hole(descriptor: int, start: int, length: int) -> bool:
    """Free a part of a file without moving what follows; reading it gives zeros.

    Returns:
        Whether the file system can (tmpfs, ext4, xfs, btrfs do).
    """
    return _allocate(descriptor, _PUNCH_HOLE, start, length)


def reserve(descriptor: int, start: int, length: int) -> bool:
    """Take disk space for a part of a file; its length stays.

    Returns:
        Whether there is space, and the file system can.
    """
    return _allocate(descriptor, 0, start, length)


def _allocate(descriptor: int, mode: int, start: int, length: int) -> bool:
    result: int = _libc.fallocate(
        descriptor, mode | _KEEP_SIZE, ctypes.c_int64(start), ctypes.c_int64(length)
    )
    return result == 0
