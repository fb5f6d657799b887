"""Sends random frames from one VM, and sees that nothing of it comes where it must not.

What leaves through the uplink has to have the sender's source; another customer's tap gets nothing,
nor does a socket of the host but its name server's. An observer behind all rules counts what the
host's stack takes although it should not. The host and the others stay connected, and the kernel
says nothing.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv6Address
from itertools import islice

from tests.network.cases.base import HERE, HERE_V4, UPLINK, VMS, address, datagram, from_outside
from tests.network.fuzz.mutation import SENDER, Mutation
from tests.support import packets as p
from tests.support.fabric import GATEWAY, OUTSIDE, Fabric, Guest, inside
from tests.support.readable import readable
from vm_agent.network.nft import Nft

_BATCH = 64
_CHECK_EACH = 64 * 32
_PATIENCE_S = 5.0
_FOREIGN = ("bob", "cut", "bare")
_ALLOWED = (HERE.packed, HERE_V4.packed)
_PORTS = (22, 67, 68, 123, 161, 546, 547, 3544, 4222, 4789, 5353, 6081, 8080)
_LIMITS = ("netdev decisec control", "inet decisec control", "inet decisec asking")
_UP_LINK = IPv6Address("fe80::1:1").packed
_ALARM = re.compile(
    r"WARNING:|BUG:|Oops|general protection|skb_|refcount|nf_tables|Call Trace.*net"
)
_OBSERVER = f"""
table inet watcher {{
	set seen {{ type ifname . inet_proto; flags dynamic; size 1024; counter; }}
	chain input {{
		type filter hook input priority 300; policy accept;
		iifname != "{VMS[SENDER].tap}" accept
		icmpv6 type {{ 133, 135, 136, 128, 129 }} accept
		icmp type {{ 0, 8 }} accept
		ip6 daddr {GATEWAY} udp dport 53 accept
		ip daddr 169.254.0.1 udp dport 53 accept
		update @seen {{ iifname . meta l4proto }}
	}}
}}
"""


class HoleError(AssertionError):
    """Something got where it must not."""


@dataclass(slots=True)
class Tally:
    """What became of the frames."""

    sent: int = 0
    refused: int = 0
    left: int = 0
    to_friends: int = 0


class Fuzz:
    """A run of random frames.

    Args:
        fabric: With all of `VMS` and their rules.
        nft: A session in it.
        seed: Of the run; with the number of a frame it says what was sent.
    """

    def __init__(self, fabric: Fabric, nft: Nft, seed: int) -> None:
        self._fabric = fabric
        self._nft = nft
        self._guests = {name: fabric.guests[vm.slot] for name, vm in VMS.items()}
        self._frames = iter(Mutation(seed))
        self._seed = seed
        self.tally = Tally()

    async def run(self, frames: int) -> Tally:
        """Send so many.

        Raises:
            HoleError: With the seed, and what was seen.
        """
        await self._nft.run(_OBSERVER)
        for guest in self._guests.values():
            for _ in guest.received():  # what the host said before there were rules
                pass
        with _host_sockets(self._fabric.netns) as sockets, _kernel_log() as log:
            for start in range(0, frames, _BATCH):
                self._send(min(_BATCH, frames - start))
                self._look(sockets)
                if start % _CHECK_EACH == 0:
                    await self._check(log)
            await self._check(log)
        return self.tally

    def _send(self, number: int) -> None:
        sender = self._guests[SENDER]
        for header, frame in islice(self._frames, number):
            self.tally.sent += 1
            try:
                sender.send(frame, header)
            except OSError:
                self.tally.refused += 1

    def _look(self, sockets: list[socket.socket]) -> None:
        for frame in self._fabric.seen_outside():
            self.tally.left += 1
            if _source(frame) not in _ALLOWED and not _hosts_own(frame):
                raise self._hole(UPLINK, frame)
        for name, guest in self._guests.items():
            for frame in guest.received():
                if name in _FOREIGN:
                    raise self._hole(name, frame)
                self.tally.to_friends += name != SENDER
        self._fabric.answer()
        if heard := readable(sockets, 0):
            raise self._hole(f"sockets of the host, {heard}", b"")

    async def _check(self, log: int) -> None:
        """What is looked at from time to time; then limits forget what was sent."""
        (listed,) = await self._nft.read("list set inet watcher seen")
        if "elem" in listed["set"]:
            raise self._hole(f"the host's stack: {listed['set']['elem']}", b"")
        if alarms := [line for line in _new_lines(log) if _ALARM.search(line)]:
            raise self._hole(f"the kernel's log: {alarms}", b"")
        self._see_connected()
        await self._nft.run("\n".join(f"flush set {name}" for name in _LIMITS))

    def _see_connected(self) -> None:
        """Another customer and the host still reach the world, and are reached."""
        bob = self._guests["bob"]
        word = b"CONNECTED%07d" % self.tally.sent
        bob.send(datagram(word, at="bob"))
        self._until(word, self._fabric.wire)
        packet = p.ip6(OUTSIDE, address("bob"), p.UDP, p.udp(OUTSIDE, address("bob"), 1, 2, word))
        self._fabric.send_from_outside(from_outside(packet))
        self._until(word, bob)
        ping = p.icmp6(OUTSIDE, GATEWAY, p.ECHO, p.echo(1, word))
        self._fabric.send_from_outside(from_outside(p.ip6(OUTSIDE, GATEWAY, p.ICMP6, ping)))
        self._until(word, self._fabric.wire)

    def _until(self, word: bytes, source: Guest | socket.socket) -> None:
        while True:
            if isinstance(source, Guest):
                seen = list(source.received())
            else:
                seen = list(self._fabric.seen_outside())
            if any(word in frame for frame in seen):
                return
            waiting = source.descriptor if isinstance(source, Guest) else source
            if not readable([waiting], _PATIENCE_S):
                raise self._hole("no connection any more", b"")

    def _hole(self, where: str, frame: bytes) -> HoleError:
        return HoleError(
            f"seed {self._seed}, among the {_BATCH} frames before {self.tally.sent}: "
            f"seen at {where}: {frame[:200].hex()}"
        )


def _source(frame: bytes) -> bytes:
    kind = frame[12:14]
    return frame[22:38] if kind == b"\x86\xdd" else frame[26:30] if kind == b"\x08\x00" else b""


def _hosts_own(frame: bytes) -> bool:
    """Listener reports of the uplink, answers to the pings from outside."""
    source, kind = _source(frame), frame[20:21]
    reports = source == _UP_LINK and kind == b"\0" and frame[62:63] == bytes([p.MLD2_REPORT])
    answers = source == GATEWAY.packed and kind == bytes([p.ICMP6]) and b"CONNECTED" in frame
    return reports or answers


@contextmanager
def _host_sockets(netns: str) -> Iterator[list[socket.socket]]:
    """Sockets of the host that nobody may reach: TCP and UDP ports, and router advertisements."""
    with ExitStack() as stack:

        def work() -> list[socket.socket]:
            made = []
            for port in _PORTS:
                for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                    one = stack.enter_context(socket.socket(socket.AF_INET6, kind))
                    one.bind(("::", port))
                    if kind == socket.SOCK_STREAM:
                        one.listen()
                    made.append(one)
            for protocol in (p.GRE, p.IPV6, p.ESP, p.SCTP, p.NO_NEXT, p.MOBILITY):
                raw = socket.socket(socket.AF_INET6, socket.SOCK_RAW, protocol)
                made.append(stack.enter_context(raw))
            return made

        yield inside(netns, work)


@contextmanager
def _kernel_log() -> Iterator[int]:
    """A descriptor of what the kernel says from now on; nothing where it is not to be heard."""
    path = "/dev/kmsg" if os.access("/dev/kmsg", os.R_OK) else os.devnull
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.lseek(descriptor, 0, os.SEEK_END)
        yield descriptor
    finally:
        os.close(descriptor)


def _new_lines(log: int) -> Iterator[str]:
    with suppress(BlockingIOError):
        while True:
            try:
                line = os.read(log, 8192)
                if not line:
                    return
                yield line.decode(errors="replace")
            except BrokenPipeError:
                continue  # some were overwritten
