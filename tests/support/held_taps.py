"""Taps through the descriptors that VMMs hold of them, and taps that nobody holds."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from pathlib import Path

from tests.support.fabric import inside, open_tap
from vm_agent import namespace

_TUNGETVNETHDRSZ = 0x800454D7
_PIDFD_GETFD = 438


def held_by(pid: int) -> list[int]:
    """Descriptors of one's own for the taps that a process has open; none if it has ended."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return []
    try:
        theirs = [int(one.name) for one in Path(f"/proc/{pid}/fd").iterdir() if _is_tap(one)]
        found = [_libc().syscall(_PIDFD_GETFD, process, number, 0) for number in theirs]
    except (FileNotFoundError, ProcessLookupError):
        return []
    finally:
        os.close(process)
    return [number for number in found if number >= 0]


def open_unheld(netns: str, name: str) -> int | None:
    """A tap that is there and nobody has open; None if there is none."""

    def work() -> int | None:
        if not any(name == found for _, found in socket.if_nameindex()):
            return None
        try:
            return open_tap(name)
        except OSError:
            return None  # somebody has it

    if not (namespace.NETNS_DIR / netns).exists():
        return None
    try:
        return inside(netns, work)
    except OSError:
        return None  # a name without a namespace


def send(tap: int, frame: bytes) -> None:
    """Send a frame into a tap, with an empty header of virtio.

    Raises:
        OSError: The tap is down.
    """
    size = struct.unpack("i", fcntl.ioctl(tap, _TUNGETVNETHDRSZ, bytes(4)))[0]
    os.write(tap, bytes(size) + frame)


def _is_tap(descriptor: Path) -> bool:
    try:
        return descriptor.readlink().name == "tun"
    except FileNotFoundError:
        return False


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
