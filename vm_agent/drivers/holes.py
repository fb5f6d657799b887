"""Space given back from a file that another process goes on writing at its own position."""

from __future__ import annotations

import ctypes

# fallocate(2), linux/falloc.h
_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02


def punch_hole(descriptor: int, start: int, length: int) -> bool:
    """Free a part of a file without moving what follows; reading it gives zeros.

    Returns:
        Whether the file system can (tmpfs, ext4, xfs, btrfs do).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = libc.fallocate(
        descriptor, _PUNCH_HOLE | _KEEP_SIZE, ctypes.c_int64(start), ctypes.c_int64(length)
    )
    return result == 0
