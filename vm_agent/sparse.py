"""Files with holes: what is data in one, laid over another."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from schemas.units import MIB
from vm_agent.disks import data_ranges, open_regular

_CHUNK_BYTES = 4 * MIB


def overlay(top: Path, base: Path) -> None:
    """Write the data of `top` over `base`, in place; where `top` has a hole, `base` stays.

    Raises:
        OSError: One of them is no regular file, or the disk refuses.
    """
    with open_regular(top) as source, base.open("r+b", buffering=0) as target:
        for start, end in data_ranges(source, os.fstat(source).st_size):
            offset = start
            while offset < end:
                chunk = os.pread(source, min(_CHUNK_BYTES, end - offset), offset)
                if not chunk:
                    raise OSError(errno.EIO, "the file became shorter", str(top))
                offset += os.pwrite(target.fileno(), chunk, offset)
