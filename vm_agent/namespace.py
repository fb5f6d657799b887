"""Network namespaces by name, entered by threads of their own so that the agent never moves.

The plain system calls: pyroute2 forks for each namespace (9 to 24 ms), these take under 1 ms.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

NETNS_DIR = Path("/run/netns")
"""Where ip-netns(8) keeps names; `nsenter` and the jailer take paths below it."""

_CLONE_NEWNET = 0x40000000
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_SHARED = 1 << 20
_MNT_DETACH = 2
_OWN_NAMESPACE = Path("/proc/thread-self/ns/net")


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def share(folder: Path) -> None:
    """Make a folder a mount of its own that is shared, as ip-netns(8) does; nothing if it is one.

    Otherwise the first `ip netns add` of anybody would do it, and hide the names that are there.

    Raises:
        OSError: The kernel refuses.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # The lock that ip-netns takes: two at once would put one mount upon the other.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        flags = ctypes.c_ulong(_MS_SHARED | _MS_REC)
        if _libc().mount(b"", bytes(folder), b"none", flags, None) == 0:
            return
        bind = ctypes.c_ulong(_MS_BIND | _MS_REC)
        _check(_libc().mount(bytes(folder), bytes(folder), b"none", bind, None), f"mount {folder}")
        _check(_libc().mount(b"", bytes(folder), b"none", flags, None), f"share {folder}")
    finally:
        os.close(descriptor)


def make(name: str) -> None:
    """Move this thread to a new namespace and give it a name. The caller owns the thread.

    Raises:
        FileExistsError: The name is taken.
        OSError: The kernel refuses.
    """
    NETNS_DIR.mkdir(mode=0o755, parents=True, exist_ok=True)
    share(NETNS_DIR)
    path = NETNS_DIR / name
    path.touch(mode=0o444, exist_ok=False)
    try:
        _check(_libc().unshare(_CLONE_NEWNET), "unshare")
        _check(
            _libc().mount(
                bytes(_OWN_NAMESPACE), bytes(path), b"none", ctypes.c_ulong(_MS_BIND), None
            ),
            f"bind mount of {name}",
        )
    except OSError:
        path.unlink()
        raise


def enter_new() -> None:
    """Move this thread to a new namespace that goes with it. The caller owns the thread.

    Raises:
        OSError: The kernel refuses.
    """
    _check(_libc().unshare(_CLONE_NEWNET), "unshare")


def enter(name: str) -> None:
    """Move this thread to a named namespace. The caller owns the thread.

    Raises:
        FileNotFoundError: There is no such name.
        OSError: The name stands for no namespace (a half-made one), or the kernel refuses.
    """
    descriptor = os.open(NETNS_DIR / name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc().setns(descriptor, _CLONE_NEWNET), f"setns to {name}")
    finally:
        os.close(descriptor)


def remove(name: str) -> None:
    """Take the name away; the namespace goes with its last process. Nothing if it is gone."""
    path = NETNS_DIR / name
    _libc().umount2(bytes(path), _MNT_DETACH)  # fails only if nothing is mounted there
    path.unlink(missing_ok=True)


async def in_own_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread that ends with it, so that it may enter a namespace.

    System calls in flight cannot be stopped: a cancellation waits for `work` first, then raises.
    """
    executor = ThreadPoolExecutor(1, thread_name_prefix="netns")
    try:
        future = asyncio.get_running_loop().run_in_executor(executor, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise
    finally:
        executor.shutdown(wait=False)
