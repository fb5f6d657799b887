"""The host's disk as one pretended machine sees it; it can be full."""

from __future__ import annotations

import os

ROOM_BYTES = 100
"""What still fits when a disk fills: less than a metrics line, so that one is torn."""


class Disk:
    """Writes to the machine's files.

    On a full disk a write ends in the midst of its bytes, as write(2) does, and what is left goes
    to /dev/full (full(4)), where the kernel refuses it as it would on the real one.
    """

    def __init__(self) -> None:
        self._full = -1
        self._room_bytes = 0

    def write(self, file: int, data: bytes) -> None:
        """Write all of it.

        Raises:
            OSError: No space is left. What fitted is written.
        """
        if self._full >= 0:
            rest = data[self._room_bytes :]
            data = data[: self._room_bytes]
            self._room_bytes -= len(data)
        else:
            rest = b""
        while data:
            data = data[os.write(file, data) :]
        if rest:
            os.write(self._full, rest)

    def fill(self) -> None:
        """Let the disk be full but for `ROOM_BYTES`."""
        self._full = os.open("/dev/full", os.O_WRONLY | os.O_CLOEXEC)
        self._room_bytes = ROOM_BYTES

    def free(self) -> None:
        """Let there be space again."""
        os.close(self._full)
        self._full = -1
