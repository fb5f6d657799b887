"""Router advertisements: how a guest that knows nothing learns address, gateway, DNS and MTU.

Each tap gets its own: the prefix of its VM, for stateless autoconfiguration and not on the link, so
that everything goes by way of the host. What a guest then makes of prefix and MAC is the address
that it was given. A guest is answered when it asks, and told again every three hours; what it was
told holds for 18 hours, and its address for ever, while no agent runs.

Sources: RFC 4861 (sections 4.2, 6.2), RFC 4862, RFC 8106 (name servers), RFC 8319 (lifetimes).
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import Callable, Iterable
from ipaddress import IPv6Address, IPv6Network

import structlog

from vm_agent.network.attachment import GATEWAY_LINK_LOCAL, GATEWAY_MAC, Attachment

_log = structlog.get_logger("decisec.network")

_SOLICITATION, _ADVERTISEMENT = 133, 134
_EVERYBODY = "ff02::1"
_HOPS = 255
"""What has come by way of a router has fewer."""

_LIFETIME_S = 65_535
_FOR_EVER = 0xFFFFFFFF
_AUTONOMOUS = 0x40
_AGAIN_S = 3 * 3600
_PATIENCE_S = 1.0
"""Between two answers to one guest."""
_AT_ONCE = 64
_REST_S = 0.05
"""So many questions are answered, then it is rested: a thousand guests that ask all the time take
a few per cent of the agent."""

# linux/in6.h and linux/icmpv6.h; the socket module has not all of them.
_ICMP6_FILTER, _RECVPKTINFO, _PKTINFO, _RECVHOPLIMIT, _HOPLIMIT = 1, 49, 50, 51, 52
_INFO = struct.Struct("=16sI")
_ALL_TYPES = 256


def advertisement(network: IPv6Network, mtu: int, name_servers: Iterable[IPv6Address]) -> bytes:
    """The message, its checksum left to the kernel.

    Args:
        network: Of the VM: a /64, or one address of a /64.
        mtu: Of the VM's link.
        name_servers: What it is told to ask for names.
    """
    prefix = IPv6Network((network.network_address, 64), strict=False)
    servers = b"".join(server.packed for server in name_servers)
    parts = [
        struct.pack("!BBHBBHII", _ADVERTISEMENT, 0, 0, 64, 0, _LIFETIME_S, 0, 0),
        struct.pack("!BB6s", 1, 1, bytes.fromhex(GATEWAY_MAC.replace(":", ""))),
        struct.pack("!BBHI", 5, 1, 0, mtu),
        struct.pack("!BBBBIII", 3, 4, 64, _AUTONOMOUS, _FOR_EVER, _FOR_EVER, 0),
        prefix.network_address.packed,
    ]
    if servers:
        parts.append(struct.pack("!BBHI", 25, 1 + len(servers) // 8, 0, _LIFETIME_S) + servers)
    return b"".join(parts)


class Advertiser:
    """Answers guests' solicitations, and tells them again before they forget.

    Args:
        of: The VM whose tap has an index; None for what is none of ours.
        mtu: Of the uplink.
        name_servers: What guests are told to ask for names.
    """

    def __init__(
        self,
        of: Callable[[int], Attachment | None],
        mtu: int,
        name_servers: Iterable[IPv6Address],
    ) -> None:
        self._of = of
        self._mtu = mtu
        self._name_servers = tuple(name_servers)
        self._socket: socket.socket | None = None
        self._resting: asyncio.TimerHandle | None = None
        self._told_s: dict[int, float] = {}

    def open(self) -> None:
        """Open the socket, in a thread that is in the fabric.

        Raises:
            OSError: The kernel refuses.
        """
        made = socket.socket(
            socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMPV6
        )
        blocked = bytearray(b"\xff" * (_ALL_TYPES // 8))
        blocked[_SOLICITATION // 8] &= ~(1 << _SOLICITATION % 8) & 0xFF
        made.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, bytes(blocked))
        for option in (_RECVPKTINFO, _RECVHOPLIMIT):
            made.setsockopt(socket.IPPROTO_IPV6, option, 1)
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, _HOPS)
        # The host is in the group it sends to; what came back would count as a VM's.
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
        self._socket = made

    def listen(self) -> None:
        """Begin to answer, in the running loop."""
        if self._socket is not None:
            asyncio.get_running_loop().add_reader(self._socket, self._answer)

    def close(self) -> None:
        """Answer no more; may be called twice."""
        if self._socket is None:
            return
        asyncio.get_running_loop().remove_reader(self._socket)
        if self._resting is not None:
            self._resting.cancel()
        self._socket.close()
        self._socket = None

    def refresh(self, vms: Iterable[Attachment], now_s: float) -> int:
        """Tell those again who were told long ago; how many there were."""
        told = 0
        known: dict[int, float] = {}
        for vm in vms:
            # One of an earlier agent's time was told nobody knows when.
            last_s = self._told_s.get(vm.index)
            if last_s is None:
                last_s = now_s - random.uniform(0, _AGAIN_S)  # noqa: S311 - to spread them
            known[vm.index] = last_s
            if now_s - last_s >= _AGAIN_S and self._tell(vm):
                known[vm.index] = now_s
                told += 1
        self._told_s = known
        return told

    def _answer(self) -> None:
        made = self._socket
        if made is None:
            return
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        for _ in range(_AT_ONCE):
            try:
                _, extra, _, _ = made.recvmsg(256, 128)
            except BlockingIOError:
                return
            except OSError as error:
                _log.warning("solicitation.not_read", error=str(error))
                return
            index, hops = _where(extra)
            vm = self._of(index)
            if vm is None or hops != _HOPS:
                continue
            if now_s - self._told_s.get(index, -_PATIENCE_S) >= _PATIENCE_S and self._tell(vm):
                self._told_s[index] = now_s
        loop.remove_reader(made)
        self._resting = loop.call_later(_REST_S, self.listen)

    def _tell(self, vm: Attachment) -> bool:
        """Send a VM its advertisement; whether that went well."""
        if self._socket is None or not vm.addresses:
            return False
        message = advertisement(vm.addresses[0], min(vm.mtu, self._mtu), self._name_servers)
        info = _INFO.pack(GATEWAY_LINK_LOCAL.packed, vm.index)
        try:
            self._socket.sendmsg(
                [message], [(socket.IPPROTO_IPV6, _PKTINFO, info)], 0, (_EVERYBODY, 0, 0, vm.index)
            )
        except OSError as error:
            # Its tap is just going, or full. A guest that was not answered asks again.
            _log.info("advertisement.not_sent", tap=vm.tap, error=str(error))
            return False
        return True


def _where(extra: list[tuple[int, int, bytes]]) -> tuple[int, int]:
    """Interface index and hop limit of a message."""
    index = hops = 0
    for _, kind, value in extra:
        if kind == _PKTINFO:
            index = _INFO.unpack_from(value)[1]
        elif kind == _HOPLIMIT:
            hops = struct.unpack_from("=i", value)[0]
    return index, hops
