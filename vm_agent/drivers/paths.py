"""Where a driver keeps things below an incarnation's run directory, and how sockets are reached.

A Unix socket's address holds 107 bytes (unix(7)), a run directory's path may be longer. So every
VMM works in its run directory and binds a bare name there, and the agent connects through a
descriptor of the socket's inode.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

API_SOCKET = "api.sock"
QMP_SOCKET = "qmp.sock"
CONSOLE = "console.log"


@contextmanager
def short_address(socket: Path) -> Iterator[str]:
    """An address to connect to a socket by, however long its path; good inside the block.

    It leads to that very socket: a link in its place, which a hostile VMM could put there, is
    not followed.

    Raises:
        OSError: It is not there, or no socket.
    """
    descriptor = os.open(socket, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENOTSOCK, "this is no socket", str(socket))
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
