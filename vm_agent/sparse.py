"""Files with holes: what is data in one, laid over another."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

_CHUNK = 4 * 1024 * 1024


def extents(descriptor: int) -> Iterator[tuple[int, int]]:
    """Start and end of each stretch of data in a file; see lseek(2), SEEK_DATA."""
    end = 0
    size = os.fstat(descriptor).st_size
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # only a hole is left
            raise
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end


def overlay(top: Path, base: Path) -> None:
    """Write the data of `top` over `base`, in place; where `top` has a hole, `base` stays."""
    source = os.open(top, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        target = os.open(base, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            for start, end in extents(source):
                offset = start
                while offset < end:
                    chunk = os.pread(source, min(_CHUNK, end - offset), offset)
                    if not chunk:
                        raise OSError(errno.EIO, "the file became shorter", str(top))
                    os.pwrite(target, chunk, offset)
                    offset += len(chunk)
        finally:
            os.close(target)
    finally:
        os.close(source)
