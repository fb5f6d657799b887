"""A few numbers in a small file, saved in one write so that a killed agent cannot tear them."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

_SUM = struct.Struct("<I")


class DamagedError(Exception):
    """The file holds something that `SavedNumbers` did not write."""


class SavedNumbers:
    """`count` unsigned 64-bit numbers with a check sum.

    The page cache takes a write of this size whole or not at all as far as another process can
    see; a host that loses power loses its VMs as well, so nothing is synced.

    Args:
        path: Created if missing.
        count: How many numbers.
    """

    def __init__(self, path: Path, count: int) -> None:
        self._format = struct.Struct(f"<{count}Q")
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def load(self) -> tuple[int, ...] | None:
        """What was saved last; None if nothing ever was.

        Raises:
            DamagedError: Size or check sum are wrong.
        """
        size = self._format.size
        saved = os.pread(self._descriptor, size + _SUM.size + 1, 0)
        if not saved:
            return None
        body = saved[:size]
        if len(saved) != size + _SUM.size or _SUM.pack(zlib.crc32(body)) != saved[size:]:
            raise DamagedError(f"{len(saved)} bytes with a wrong size or check sum")
        return self._format.unpack(body)

    def save(self, *numbers: int) -> None:
        """Replace what is saved."""
        body = self._format.pack(*numbers)
        os.pwrite(self._descriptor, body + _SUM.pack(zlib.crc32(body)), 0)

    def close(self) -> None:
        """Close the file; may be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
