"""A network interface per VM: a persistent tap in a network namespace of its own.

The namespace holds the tap and nothing else: no address, no route, no forwarding, no IPv6 (so
the host's own stack sends nothing that a guest would be billed for), and the loopback stays
down. What a guest sends is counted and goes nowhere: until a fabric takes the tap, it fails
closed. The counters live in the kernel until `destroy`, also when the VMM is long dead.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import struct
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from vm_agent import namespace
from vm_agent.drivers.abc import Nic
from vm_agent.network.changes import delete_links, open_link

NETNS_PREFIX = "decisec-"
TAP = "tap0"
_NAME = re.compile(r"decisec-([0-9a-f]{32})-([0-9]+)")

_TUN = Path("/dev/net/tun")
# linux/if_tun.h. pyroute2 makes taps too, but without the header flag that VMMs ask for.
_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_TUNSETOWNER = 0x400454CC
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000


class NetworkError(Exception):
    """The kernel refused a namespace or a tap. The message is fit for an operator."""


def available() -> str | None:
    """None if VMs can get a network interface here, else the reason why not."""
    if os.geteuid() != 0:
        return "the agent does not run as root, so it cannot make taps"
    if not _TUN.exists():
        return f"{_TUN} does not exist: the tun module is not there"
    return None


def nic_of(vm_id: UUID, incarnation: int) -> Nic:
    """The names of a VM's interface; they follow from the ids, so nothing need be stored."""
    # Locally administered, unicast; the last five bytes of a UUIDv7 are random.
    mac = ":".join(f"{byte:02x}" for byte in (0x06, *vm_id.bytes[-5:]))
    return Nic(netns=f"{NETNS_PREFIX}{vm_id.hex}-{incarnation}", tap=TAP, mac=mac)


def owner_of(nic: Nic) -> tuple[UUID, int]:
    """The VM and the incarnation that an interface of ours was made for."""
    match = _NAME.fullmatch(nic.netns)
    if match is None:
        raise ValueError(f"{nic.netns!r} is no namespace of this agent")
    return UUID(match[1]), int(match[2])


async def create(nic: Nic, owner: int | None = None) -> Nic:
    """Make the namespace and the tap, with all counters at zero. Takes a few ms.

    The tap is open, unless it goes on into a fabric, which opens it.

    The user `owner` may open the tap; None leaves it to those who may change the network.

    One that is left over from an interrupted attempt is replaced. On failure or cancellation
    nothing is left.

    Raises:
        NetworkError: The kernel refuses.
    """
    await destroy(nic)
    try:
        await namespace.in_own_thread(lambda: _build(nic, owner))
    except OSError as error:
        await destroy(nic)
        raise NetworkError(f"cannot make a tap: {error}") from error
    except asyncio.CancelledError:
        await destroy(nic)
        raise
    return nic


async def destroy(nic: Nic) -> None:
    """Remove tap and namespace, and with them the counters. Nothing if they are gone.

    Raises:
        NetworkError: The kernel refuses.
    """
    if not (namespace.NETNS_DIR / nic.netns).exists():
        return
    try:
        await namespace.in_own_thread(lambda: _tear_down(nic))
    except OSError as error:
        raise NetworkError(f"cannot remove {nic.netns}: {error}") from error


def list_owned() -> list[Nic]:
    """Every interface that an agent made on this host and nobody destroyed."""
    if not namespace.NETNS_DIR.is_dir():
        return []
    names = sorted(path.name for path in namespace.NETNS_DIR.iterdir())
    return [nic_of(UUID(m[1]), int(m[2])) for m in map(_NAME.fullmatch, names) if m is not None]


def _build(nic: Nic, owner: int | None) -> None:
    namespace.make(nic.netns)
    for setting, value in (
        ("ipv6/conf/all/disable_ipv6", "1"),
        ("ipv6/conf/default/disable_ipv6", "1"),
        ("ipv4/ip_forward", "0"),
    ):
        with suppress(FileNotFoundError):  # a kernel without IPv6 has nothing to switch off
            Path("/proc/sys/net", setting).write_text(value)
    descriptor = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC)
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", nic.tap.encode(), flags))
        fcntl.ioctl(descriptor, _TUNSETPERSIST, 1)
        if owner is not None:
            fcntl.ioctl(descriptor, _TUNSETOWNER, owner)
    finally:
        os.close(descriptor)
    if not nic.fabric:
        open_link(nic.tap)


def _tear_down(nic: Nic) -> None:
    # A reader's open counters would keep the namespace alive, so the tap is deleted by name.
    try:
        namespace.enter(nic.netns)
    except FileNotFoundError:
        return
    except OSError:
        namespace.remove(nic.netns)  # half made: a name without a namespace
        return
    delete_links([nic.tap])
    namespace.remove(nic.netns)


class TapCounters:
    """Reads a tap's byte counters through a descriptor that stays open: a few µs per read.

    `/proc/net/dev` belongs to the namespace of the thread that opened it, so later reads need
    not enter it. Answers after the VMM's death, until the tap is destroyed.
    """

    def __init__(self, nic: Nic, descriptor: int) -> None:
        self._descriptor = descriptor
        # As the kernel writes it: "%6s:".
        self._line_start = f"\n{nic.tap:>6}:".encode()

    @classmethod
    async def open(cls, nic: Nic) -> TapCounters:
        """Open the counters of an interface.

        Raises:
            NetworkError: There is no such interface.
        """

        def work() -> int:
            namespace.enter(nic.netns)
            return os.open("/proc/thread-self/net/dev", os.O_RDONLY | os.O_CLOEXEC)

        try:
            return cls(nic, await namespace.in_own_thread(work))
        except OSError as error:
            raise NetworkError(f"cannot read the counters of {nic.netns}: {error}") from error

    def read(self) -> tuple[int, int]:
        """Bytes the guest has (received, sent) since the tap was made, Ethernet headers included.

        Raises:
            NetworkError: The tap is gone, or the counters were closed.
        """
        try:
            table = os.pread(self._descriptor, 4096, 0)
        except OSError as error:
            raise NetworkError(f"cannot read tap counters: {error}") from error
        _, found, rest = table.partition(self._line_start)
        if not found:
            raise NetworkError("the tap is gone")
        columns = rest.split(None, 9)
        # The host receives what the guest sends.
        return int(columns[8]), int(columns[0])

    def close(self) -> None:
        """Let go of the descriptor; may be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
