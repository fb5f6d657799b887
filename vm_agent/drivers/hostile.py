"""Files in a directory that belongs to a VMM, which may be hostile.

Its guest may have broken out of the machine into the VMM, and then it can replace what is there by
links and pipes. The agent is root, and must not be led elsewhere: so it opens what is really there,
and only if it is a plain file.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vm_agent.drivers.abc import DriverError


def open_plain(path: Path, flags: int) -> int:
    """Open a regular file by its own name; the descriptor.

    Raises:
        OSError: It is not there, or something else is in its place: a link, a pipe, a device.
    """
    # Without O_NONBLOCK the open of a pipe would wait for its other end.
    guards = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags | guards, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "this is no regular file", str(path))
    return descriptor


@contextmanager
def folder_of(home: Path, *names: str) -> Iterator[int]:
    """A descriptor of a VMM's directory, or of one in it, for the length of the block.

    Raises:
        OSError: It is not there, or a link is in its place. `home` itself may be one: who makes
            it is the agent.
    """
    descriptor = os.open(home, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in names:
            flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            inner = os.open(name, flags, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def take_out(folder: int, name: str, target: Path) -> None:
    """Move a file out of the VMM's reach, and make it read-only and the agent's.

    Args:
        folder: Descriptor of the directory that it is in.
        name: Its name there.
        target: Where it goes, on the same file system.

    Raises:
        OSError: It is not there, or cannot be moved.
        DriverError: It is no plain file.
    """
    os.rename(name, target, src_dir_fd=folder)
    # Only now it cannot be swapped any more.
    if not stat.S_ISREG(target.lstat().st_mode):
        target.unlink()
        raise DriverError(f"the VMM wrote something else than a file as {name}")
    os.chown(target, os.geteuid(), os.getegid())
    target.chmod(0o444)
