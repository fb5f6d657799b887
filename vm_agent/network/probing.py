"""Probes that are sent to one VM, and their answers: sockets in the fabric and at its way out.

Nothing is sent to any address but the VM's own, and an answer never gets further than the host's
end of the way out (see `probes`). Sockets are opened in the threads that live in the namespaces and
used in the event loop, so that no other VM waits for this one.
"""

from __future__ import annotations

import asyncio
import ctypes
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address

from pyroute2 import IPRoute

from vm_agent.network.attachment import GATEWAY_IPV4, GATEWAY_LINK_LOCAL, Attachment
from vm_agent.network.layout import Layout
from vm_agent.network.probes import (
    PROBER_MAC,
    Answer,
    Probe,
    answer_inside,
    answer_outside,
    reset,
)
from vm_agent.network.resident import Resident

_TURNS, _TURN_S = 3, 0.4
"""So often an unanswered probe is sent, and so long its answer is waited for each time: the guest
may have been busy."""

_MOST_HEARD = 256
"""Messages that are looked at: a guest that floods keeps nobody busy."""

_ETH_P_ALL = 3
_ICMP4, _ICMP6 = 1, 58
_ICMP6_FILTER, _PKTINFO = 1, 50
_REPLY6, _ADVERTISEMENT = 129, 136
_ALL_TYPES = 256
_SO_ATTACH_FILTER = 26

STOPPED = "stopped"
"""Why the kernel does not send what a rule does not let out."""


@dataclass(slots=True)
class Sent:
    """A probe, and what has become of it.

    Attributes:
        refused: Why the kernel did not send it; `STOPPED` if a rule did not let it out.
        answer: What came back; None if nothing did.
        round_trip_us: How long that took.
        times: How often the kernel took it.
    """

    probe: Probe
    refused: str = ""
    answer: Answer | None = None
    round_trip_us: int | None = None
    times: int = 0
    _at_s: float = 0.0
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def begun(self, now_s: float) -> None:
        """Note that it is sent now."""
        self._at_s = now_s
        self.refused = ""

    def answered(self, answer: Answer, now_s: float) -> None:
        """Note what came back, the first time."""
        if self.answer is None:
            self.answer = answer
            self.round_trip_us = max(0, round((now_s - self._at_s) * 1e6))
            self.done.set()


async def send_all(
    probes: Sequence[Probe],
    vm: Attachment,
    layout: Layout,
    inside: Resident,
    outside: Resident,
    uplink_mac: str,
) -> list[Sent]:
    """Send all probes at once and wait for the answers of those that are to pass.

    Raises:
        OSError, NetlinkError: The kernel refuses a socket.
    """
    sent = [Sent(probe) for probe in probes]
    loop = asyncio.get_running_loop()
    with ExitStack() as stack:
        wires = await _open(vm, layout, inside, outside, stack)
        for wire in wires.all:
            loop.add_reader(wire, _hear, wire, wires, sent, uplink_mac, loop)
            stack.callback(loop.remove_reader, wire)
        for turn in range(_TURNS):
            for one in sent:
                if one.answer is None and (one.probe.passes or not turn):
                    wires.send(one, vm, loop.time())
            end_s = loop.time() + _TURN_S
            await _answered((one for one in sent if one.probe.passes), end_s)
            if not turn and not all(one.probe.passes for one in sent):
                # What is to be stopped is watched for an answer.
                await asyncio.sleep(end_s - loop.time())
            if all(one.answer is not None for one in sent if one.probe.passes):
                break
    return sent


async def _answered(all_: Iterable[Sent], end_s: float) -> None:
    """Wait for the answers of all, at most until then."""
    with suppress(TimeoutError):
        async with asyncio.timeout_at(end_s):
            for one in all_:
                await one.done.wait()


@dataclass(slots=True)
class _Wires:
    """Where probes are sent and answers come.

    Attributes:
        icmp6: ICMPv6 of the tap, inside.
        icmp4: ICMP of the tap; None for a VM without IPv4.
        outer: Frames of the host's end of the way out; None where that is none of ours, or gone.
        heard: How many messages have come.
    """

    icmp6: socket.socket
    icmp4: socket.socket | None
    outer: socket.socket | None
    heard: int = 0

    @property
    def all(self) -> Iterator[socket.socket]:
        """Those that there are."""
        return (one for one in (self.icmp6, self.icmp4, self.outer) if one is not None)

    def send(self, one: Sent, vm: Attachment, now_s: float) -> None:
        """Send a probe."""
        probe = one.probe
        one.begun(now_s)
        try:
            if probe.outside:
                if self.outer is None:
                    one.refused = "the host's end of the way out is gone"
                    return
                self.outer.send(probe.data)
            elif isinstance(probe.to, IPv6Address):
                info = struct.pack("=16sI", GATEWAY_LINK_LOCAL.packed, vm.index)
                self.icmp6.sendmsg(
                    [probe.data],
                    [(socket.IPPROTO_IPV6, _PKTINFO, info)],
                    0,
                    (str(probe.to), 0, 0, vm.index),
                )
            elif self.icmp4 is not None:
                self.icmp4.sendto(probe.data, (str(probe.to), 0))
        except PermissionError:
            # A rule for what the host itself sends.
            one.refused = STOPPED
        except OSError as error:
            one.refused = error.strerror or str(error)
        else:
            one.times += 1


async def _open(
    vm: Attachment,
    layout: Layout,
    inside: Resident,
    outside: Resident,
    stack: ExitStack,
) -> _Wires:
    def kept(
        made: Callable[[], socket.socket], set_up: Callable[[socket.socket], None]
    ) -> Callable[[IPRoute], socket.socket]:
        def work(_: IPRoute) -> socket.socket:
            wire = stack.enter_context(made())
            set_up(wire)
            return wire

        return work

    icmp6 = await inside.run(kept(_icmp6, lambda wire: _set_icmp6(wire, vm.tap)))
    icmp4: socket.socket | None = None
    if vm.ipv4 is not None:
        icmp4 = await inside.run(kept(_icmp4, lambda wire: _set_icmp4(wire, vm.tap)))
    outer: socket.socket | None = None
    if not layout.interface:
        with suppress(OSError):
            outer = await outside.run(kept(_frames, lambda wire: _set_frames(wire, layout.outer)))
    return _Wires(icmp6, icmp4, outer)


def _hear(
    wire: socket.socket,
    wires: _Wires,
    sent: Sequence[Sent],
    uplink_mac: str,
    loop: asyncio.AbstractEventLoop,
) -> None:
    wires.heard += 1
    if wires.heard > _MOST_HEARD:
        loop.remove_reader(wire)
        return
    try:
        message, address = wire.recvfrom(1 << 16)
    except OSError:
        return  # nothing any more, or the tap has just gone: then nothing is answered
    for one in sent:
        if wire is wires.outer:
            answer = answer_outside(one.probe, message)
            if answer is not None and answer.taken and one.answer is None:
                with suppress(OSError):
                    wire.send(reset(one.probe, message, uplink_mac))
        elif wire is wires.icmp6:
            source: IPv6Address | IPv4Address = IPv6Address(address[0].partition("%")[0])
            answer = answer_inside(one.probe, message, source)
        else:
            # A socket of IPv4 shows the packet's header too.
            size = (message[0] & 15) * 4
            answer = answer_inside(one.probe, message[size:], ip_address(address[0]))
        if answer is not None:
            one.answered(answer, loop.time())


def _icmp6() -> socket.socket:
    return socket.socket(socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _ICMP6)


def _set_icmp6(wire: socket.socket, tap: str) -> None:
    blocked = bytearray(b"\xff" * (_ALL_TYPES // 8))
    for kind in (_REPLY6, _ADVERTISEMENT):
        blocked[kind // 8] &= ~(1 << kind % 8) & 0xFF
    wire.setsockopt(_ICMP6, _ICMP6_FILTER, bytes(blocked))
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, tap.encode())
    for option in (socket.IPV6_MULTICAST_HOPS, socket.IPV6_UNICAST_HOPS):
        wire.setsockopt(socket.IPPROTO_IPV6, option, 255)
    wire.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)


def _icmp4() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _ICMP4)


def _set_icmp4(wire: socket.socket, tap: str) -> None:
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, tap.encode())
    wire.bind((str(GATEWAY_IPV4), 0))


def _frames() -> socket.socket:
    return socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)


def _set_frames(wire: socket.socket, interface: str) -> None:
    """All frames of an interface that are for the prober's MAC: bpf(4), classic."""
    first, last = struct.unpack("!IH", bytes.fromhex(PROBER_MAC.replace(":", "")))
    program = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (0x20, 0, 0, 0),  # the first four octets
            (0x15, 0, 3, first),
            (0x28, 0, 0, 4),  # the two after them
            (0x15, 0, 1, last),
            (0x06, 0, 0, 0xFFFF),  # all of it
            (0x06, 0, 0, 0),  # nothing
        )
    )
    buffer = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    wire.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)
    wire.bind((interface, _ETH_P_ALL))
