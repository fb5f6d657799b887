"""File descriptors with low numbers, kept for those who can use no others.

libnftables waits with select(2), which knows descriptors below 1024 only, and a process that has
many files open gets higher ones. What is kept is told from other files by its name, so whoever
needs one finds it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

SELECT_MOST = 1024
"""FD_SETSIZE of select(2): descriptors are below it."""

_NAME = "decisec-low"
_OWN = Path("/proc/self/fd")


def keep(count: int) -> None:
    """Keep that many low descriptors, fewer if there are none left. To be called early."""
    for _ in range(count):
        descriptor = os.memfd_create(_NAME, os.MFD_CLOEXEC)
        if descriptor >= SELECT_MOST:
            os.close(descriptor)
            return


def is_any_free() -> bool:
    """Whether the next file that is opened gets a low descriptor."""
    descriptor = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.close(descriptor)
    return descriptor < SELECT_MOST


def give_up_one() -> bool:
    """Free one that is kept, for the file that is opened next. False if none is."""
    for descriptor, target in _low():
        if target.startswith(f"/memfd:{_NAME}"):
            os.close(descriptor)
            return True
    return False


def sockets() -> set[int]:
    """The low descriptors that are sockets."""
    return {descriptor for descriptor, target in _low() if target.startswith("socket:")}


def _low() -> Iterator[tuple[int, str]]:
    for path in sorted(_OWN.iterdir(), key=lambda path: int(path.name)):
        if int(path.name) < SELECT_MOST:
            try:
                yield int(path.name), str(path.readlink())
            except OSError:
                continue  # closed meanwhile, as the one by which this folder is read
