"""VMs' own disks: made whole or not at all, from the image's root file system where it has one.

A disk gets its name when it is complete and durable, so one that is there is whole, and an agent
that is killed leaves nothing but an unfinished file, which the next try replaces.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from schemas.errors import ErrorCode
from schemas.units import MIB
from schemas.vms import VmSpec
from vm_agent.states import RefusedError

Progress = Callable[[int, int], None]
"""Told the bytes that are done, and all there are. What it raises ends the work."""

T = TypeVar("T")

_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
_CHUNK_BYTES = MIB
_SECTOR_BYTES = 512
_COPIES_AT_ONCE = 2


def clone_file(source: Path, target: Path, progress: Progress | None = None) -> bool:
    """Make a file with the content of another one; holes stay holes.

    Where the file system can, both share their blocks until one is written to (FICLONE), which
    takes no time and no space. Else the content is copied. It is not synced.

    Args:
        source: A regular file, and no symbolic link to one.
        target: Must not exist. It gets mode 0600; none is left if this fails.
        progress: Told of every MiB that is copied.

    Returns:
        Whether the blocks are shared.

    Raises:
        OSError: There is no source, or a target; no space; the source changed meanwhile.
    """
    with open_regular(source) as read:
        write = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            shared = _reflink(read, write)
            if not shared:
                _copy(read, write, source, progress)
        except BaseException:
            target.unlink()
            raise
        finally:
            os.close(write)
    return shared


@contextmanager
def open_regular(path: Path | str, *, folder: int | None = None) -> Iterator[int]:
    """A descriptor to read a regular file with, for the length of the block.

    Args:
        path: Where it is. A symbolic link is not followed.
        folder: Descriptor of the directory that the path begins in.

    Raises:
        OSError: It is not there, or is something else.
    """
    # Without O_NONBLOCK the open of a FIFO would wait for a writer.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            error.strerror = "a symbolic link, which is not followed"
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        yield descriptor
    finally:
        os.close(descriptor)


def data_ranges(descriptor: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """Where a file has content: start and end of each part that is no hole, in order."""
    end = 0
    while end < size_bytes:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # a hole up to the end
            raise
        end = min(os.lseek(descriptor, start, os.SEEK_HOLE), size_bytes)
        yield start, end


def sync(path: Path) -> None:
    """Return once a file's content, or a directory's entries, will survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def in_thread(work: Callable[[Progress], T]) -> T:
    """Run long work in a thread. When this is cancelled, the work's next progress ends it.

    So an agent that is asked to stop does not wait until gigabytes are copied.
    """
    cancelled = threading.Event()

    def go_on(done: int, total: int) -> None:
        if cancelled.is_set():
            raise InterruptedError(errno.EINTR, f"ended after {done} of {total} bytes")

    try:
        return await asyncio.to_thread(work, go_on)
    except asyncio.CancelledError:
        cancelled.set()
        raise


def with_disk(spec: VmSpec, rootfs_bytes: int) -> VmSpec:
    """The spec with the size, in whole MiB, of the disk that the VM will really have.

    Args:
        spec: As it was asked for.
        rootfs_bytes: Size of the image's root file system; 0 if it has none.

    Raises:
        RefusedError: With `bad_request`: the disk is smaller than that.
    """
    least_mib = -(-rootfs_bytes // MIB)
    if spec.disk_mib == 0:
        return msgspec.structs.replace(spec, disk_mib=least_mib)
    if spec.disk_mib < least_mib:
        raise RefusedError(
            ErrorCode.BAD_REQUEST,
            f"the disk is too small: image {spec.image!r} needs disk_mib of at least {least_mib}, "
            "or 0 for just its own size",
        )
    return spec


def disk_bytes(spec: VmSpec, rootfs_bytes: int) -> int:
    """Size of the disk of a VM, from the spec as it was asked for; 0 means it has none."""
    # A guest sees whole sectors only: less would cut off the end of its file system.
    return spec.disk_mib * MIB or -(-rootfs_bytes // _SECTOR_BYTES) * _SECTOR_BYTES


def make_disk(
    path: Path, size_bytes: int, rootfs: Path | None = None, progress: Progress | None = None
) -> None:
    """Make a disk for a VM that has never run; nothing happens if it is there already.

    Args:
        path: Where it goes.
        size_bytes: How large it is; what the rootfs does not fill is zero and takes no space.
        rootfs: What it begins with; None for an empty disk.
        progress: Told of every MiB that is copied.

    Raises:
        OSError: It cannot be made; nothing is left.
    """
    if path.exists() and path.stat().st_size == size_bytes:
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = _unfinished(path)
    unfinished.unlink(missing_ok=True)
    try:
        _begin(unfinished, size_bytes, rootfs, progress)
        os.truncate(unfinished, size_bytes)
        sync(unfinished)
        unfinished.rename(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    sync(path.parent)


def replace_disk(path: Path, source: Path) -> None:
    """Give a VM that does not run a copy of another disk, in one step.

    Raises:
        OSError: It cannot be made; the VM keeps what it has.
    """
    unfinished = _unfinished(path)
    unfinished.unlink(missing_ok=True)
    clone_file(source, unfinished)
    unfinished.rename(path)


def remove_disk(path: Path) -> None:
    """Remove a disk, and what a try to make it has left; nothing happens if there is none."""
    _unfinished(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


class Disks:
    """Makes disks beside the event loop.

    A few copies at a time: more would be no faster, and would take the threads that records and
    frames are written in.
    """

    def __init__(self) -> None:
        self._copies = asyncio.Semaphore(_COPIES_AT_ONCE)

    async def make(self, path: Path, size_bytes: int, rootfs: Path | None = None) -> None:
        """See `make_disk`. Safe to cancel, and to repeat.

        Raises:
            OSError: It cannot be made; nothing is left.
        """
        if rootfs is None:
            await asyncio.to_thread(make_disk, path, size_bytes)
            return
        async with self._copies:
            await in_thread(lambda progress: make_disk(path, size_bytes, rootfs, progress))


def _begin(path: Path, size_bytes: int, rootfs: Path | None, progress: Progress | None) -> None:
    if rootfs is None:
        path.touch(mode=0o600, exist_ok=False)
        return
    clone_file(rootfs, path, progress)
    if path.stat().st_size > size_bytes:
        raise OSError(errno.EFBIG, "the image's rootfs is larger than the disk", str(rootfs))


def _unfinished(path: Path) -> Path:
    return path.with_name(f".new-{path.name}")


def _reflink(read: int, write: int) -> bool:
    try:
        fcntl.ioctl(write, _FICLONE, read)
    except OSError:
        # File systems refuse in many ways. An error that is none of them comes up again in the
        # copy.
        return False
    return True


def _copy(read: int, write: int, source: Path, progress: Progress | None) -> None:
    before = os.fstat(read)
    size_bytes = before.st_size
    os.truncate(write, size_bytes)
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    for start, end in data_ranges(read, size_bytes):
        at = start
        while count := os.preadv(read, [buffer[: end - at]], at):
            at += _write_all(write, buffer[:count], at)
            if progress is not None:
                progress(at, size_bytes)
    after = os.fstat(read)
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise OSError(errno.EBUSY, "changed while it was copied", str(source))


def _write_all(write: int, content: memoryview, at: int) -> int:
    done = 0
    while done < len(content):
        done += os.pwrite(write, content[done:], at + done)
    return done
