"""Files and directories of the image store: read without following links, replaced in one step."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from schemas.units import MIB
from vm_agent.disks import Progress, data_ranges, open_regular, sync

FOLDER_MODE = 0o755
FILE_MODE = 0o444

Stamp = tuple[int, int, int, int]
"""Device, inode, size and time of the last change: another one when a file's content is changed."""

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # linux/fs.h
_CANNOT_EXCHANGE = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EXDEV})
_UNFINISHED = (".new-*", ".old-*")


@contextmanager
def open_folder(path: Path) -> Iterator[int]:
    """A descriptor of a directory, for the length of the block.

    What is read through it is of one import, even if another one replaces the directory meanwhile.

    Raises:
        OSError: It is not there, or is something else, such as a symbolic link to one.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def is_folder(path: Path, descriptor: int) -> bool:
    """Whether a path still leads to the directory that the descriptor is of."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(descriptor))


def read_small(name: str, folder: int) -> bytes:
    """The content of a small file in a directory."""
    with open_regular(name, folder=folder) as descriptor:
        return os.pread(descriptor, MIB, 0)


def stamp(name: str, folder: int) -> Stamp:
    """What tells cheaply whether a file has changed. Links to it do not count as a change."""
    with open_regular(name, folder=folder) as descriptor:
        found = os.fstat(descriptor)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def digest(name: str, folder: int, progress: Progress | None = None) -> str:
    """The SHA-256 digest of a file in a directory, hexadecimal."""
    found = hashlib.sha256()
    at = 0
    with open_regular(name, folder=folder) as descriptor:
        size_bytes = os.fstat(descriptor).st_size
        for part in _content(descriptor, size_bytes):
            found.update(part)
            at += len(part)
            if progress is not None:
                progress(at, size_bytes)
    return found.hexdigest()


def _content(descriptor: int, size_bytes: int) -> Iterator[memoryview]:
    """A file's content in parts. Holes are not read: that would fill the page cache with zeros."""
    buffer, zeros = memoryview(bytearray(MIB)), memoryview(bytes(MIB))
    at = 0
    for start, end in chain(data_ranges(descriptor, size_bytes), [(size_bytes, size_bytes)]):
        while at < start:
            part = zeros[: start - at]
            at += len(part)
            yield part
        while count := os.preadv(descriptor, [buffer[: end - at]], at):
            at += count
            yield buffer[:count]


@contextmanager
def locked(directory: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a directory against other writers; the lock dies with its holder.

    Args:
        directory: Which one.
        waiting: Called when another one holds it, before the wait; may raise instead.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is not None:
                waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def work_folder(directory: Path) -> Iterator[Path]:
    """A directory to prepare a change in; it goes with whatever is in it at the end."""
    work = Path(tempfile.mkdtemp(prefix=".new-", dir=directory))
    try:
        yield work
    finally:
        remove_any(work)


def clear_unfinished(directory: Path) -> int:
    """Remove what killed writers have left; how many. Only for who holds the lock."""
    left = [path for pattern in _UNFINISHED for path in directory.glob(pattern)]
    for path in left:
        remove_any(path)
    return len(left)


def remove_any(path: Path) -> None:
    """Remove a directory and all in it, or a file; nothing happens if it is gone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def put_in_place(work: Path, target: Path) -> None:
    """Give a prepared directory its name, durably; what had it before is in `work` then.

    There is no instant without the one or the other, except on file systems that cannot exchange
    two names: there a power cut in between can leave none.
    """
    sync(work)
    if not os.path.lexists(target):
        work.rename(target)
    else:
        try:
            _exchange(work, target)
        except OSError as error:
            if error.errno not in _CANNOT_EXCHANGE:
                raise
            old = Path(tempfile.mkdtemp(prefix=".old-", dir=target.parent))
            target.rename(old / target.name)
            work.rename(target)
            remove_any(old)
    sync(target.parent)


def _exchange(one: Path, other: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    flags = ctypes.c_uint(_RENAME_EXCHANGE)
    number = 0
    if not hasattr(libc, "renameat2"):
        number = errno.ENOSYS
    elif libc.renameat2(_AT_FDCWD, bytes(one), _AT_FDCWD, bytes(other), flags):
        number = ctypes.get_errno()
    if number:
        raise OSError(number, os.strerror(number), str(one), None, str(other))
