"""Packets that ask a guest whether it is there, and how their answers are known. No I/O.

Those from inside the fabric are ICMP messages of the gateway. Those from outside are frames for
the uplink, from addresses that are nobody's (RFC 9637, RFC 5737): the fabric sends what is for
them to a MAC that nobody has, so that the host's own stack never takes or forwards an answer.
"""

from __future__ import annotations

import secrets
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from schemas.network_checks import Probed

ETHER_BYTES = 14

PROBER = IPv6Address("3fff:dec::1")
PROBER_IPV4 = IPv4Address("198.51.100.254")
PROBER_LINK_LOCAL = IPv6Address("fe80::dec:c")
PROBER_MAC = "02:dc:00:00:00:02"

_ETH_IP6, _ETH_IP4 = b"\x86\xdd", b"\x08\x00"
_IP6_BYTES, _IP4_BYTES, _ECHO_BYTES = 40, 20, 8
_ICMP4, _TCP, _ICMP6 = 1, 6, 58
_ECHO6, _REPLY6, _SOLICITATION, _ADVERTISEMENT = 128, 129, 135, 136
_ECHO4, _REPLY4 = 8, 0
_SYN, _RST, _ACK = 2, 4, 16
_HOPS = 64
_ERRORS = {1: "unreachable", 2: "too big", 3: "no hop left", 4: "a header is wrong"}
_TOKEN_BYTES = 16


@dataclass(frozen=True, slots=True)
class Probe:
    """One question.

    Attributes:
        probed: What it is about.
        outside: It comes through the uplink, as a whole frame; otherwise it is an ICMP message.
        to: Where it goes, an address of the VM (or the group of it).
        data: What is sent.
        token: What its answer holds, and no other packet.
        passes: It is to be answered; otherwise it is to be stopped.
    """

    probed: Probed
    outside: bool
    to: IPv6Address | IPv4Address
    data: bytes
    token: bytes
    passes: bool = True

    @property
    def packet_bytes(self) -> int:
        """How long its packet is, without the Ethernet header."""
        if self.outside:
            return len(self.data) - ETHER_BYTES
        header = _IP6_BYTES if isinstance(self.to, IPv6Address) else _IP4_BYTES
        return header + len(self.data)

    @property
    def about(self) -> str:
        """The address of the VM that it is about."""
        return str(IPv6Address(self.token) if self.probed is Probed.NEIGHBOUR else self.to)

    @property
    def port(self) -> int:
        """The port that a connection is begun to."""
        return int.from_bytes(self.token[:2])


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.

    Attributes:
        error: What an ICMP error says instead; empty for an answer of the guest.
        taken: It takes the connection that was begun.
    """

    error: str = ""
    taken: bool = False


def solicitation(target: IPv6Address, *, passes: bool = True) -> Probe:
    """Who has an address? For the group of it (RFC 4861, section 4.3)."""
    group = IPv6Address(int(IPv6Address("ff02::1:ff00:0")) | int(target) & 0xFFFFFF)
    body = struct.pack("!BBHI", _SOLICITATION, 0, 0, 0) + target.packed
    return Probe(Probed.NEIGHBOUR, False, group, body, target.packed, passes)


def ping(
    probed: Probed, to: IPv6Address | IPv4Address, *, size: int = 0, passes: bool = True
) -> Probe:
    """A ping of the gateway; with a size, in a packet so long."""
    token = secrets.token_bytes(_TOKEN_BYTES)
    return Probe(probed, False, to, _echo(to, token, size), token, passes)


def ping_from_outside(
    probed: Probed,
    to: IPv6Address | IPv4Address,
    uplink_mac: str,
    *,
    size: int = 0,
    passes: bool = True,
) -> Probe:
    """The same through the uplink; of IPv4, not to be fragmented."""
    token = secrets.token_bytes(_TOKEN_BYTES)
    echo = _echo(to, token, size)
    return Probe(probed, True, to, _from_outside(to, echo, uplink_mac), token, passes)


def syn(probed: Probed, to: IPv6Address, port: int, uplink_mac: str, *, passes: bool) -> Probe:
    """The beginning of a connection through the uplink; the token is the ports of its answer."""
    own = 49_152 + secrets.randbelow(16_384)
    segment = _segment(own, port, _SYN, secrets.randbits(32))
    token = struct.pack("!HH", port, own)
    return Probe(probed, True, to, _from_outside(to, segment, uplink_mac, _TCP), token, passes)


def reset(probe: Probe, answer: bytes, uplink_mac: str) -> bytes:
    """What ends the connection that a guest takes for begun."""
    port, own = struct.unpack("!HH", probe.token)
    (acknowledged,) = struct.unpack_from("!I", answer, ETHER_BYTES + _IP6_BYTES + 8)
    return _from_outside(probe.to, _segment(own, port, _RST, acknowledged), uplink_mac, _TCP)


def answer_inside(probe: Probe, message: bytes, source: IPv6Address | IPv4Address) -> Answer | None:
    """What an ICMP message that came to the gateway says to a probe; None if nothing."""
    if probe.outside or not message:
        return None
    if probe.probed is Probed.NEIGHBOUR:
        right = message[0] == _ADVERTISEMENT and message[8:24] == probe.token
        return Answer() if right else None
    reply = _REPLY6 if isinstance(probe.to, IPv6Address) else _REPLY4
    right = source == probe.to and message[0] == reply and probe.token in message
    return Answer() if right and len(message) == len(probe.data) else None


def answer_outside(probe: Probe, frame: bytes) -> Answer | None:
    """What a frame that left through the uplink says to a probe; None if nothing."""
    if not probe.outside:
        return None
    six = isinstance(probe.to, IPv6Address)
    size = _IP6_BYTES if six else _IP4_BYTES
    if frame[12:14] != (_ETH_IP6 if six else _ETH_IP4) or len(frame) < ETHER_BYTES + size + 20:
        return None
    protocol, source = (frame[20], frame[22:38]) if six else (frame[23], frame[26:30])
    message = frame[ETHER_BYTES + size :]
    if six and protocol == _ICMP6 and message[0] in _ERRORS:
        quoted = message[8:]
        whole = probe.data[ETHER_BYTES + _IP6_BYTES :]
        right = quoted[24:40] == probe.to.packed and whole[:8] == quoted[_IP6_BYTES:][:8]
        words = f"{_ERRORS[message[0]]}, says {IPv6Address(source)}"
        return Answer(error=words) if right else None
    if source != probe.to.packed:
        return None
    if protocol == _TCP:
        if message[:4] != probe.token:
            return None
        return Answer(taken=message[13] & (_SYN | _ACK) == _SYN | _ACK)
    reply = (_ICMP6, _REPLY6) if six else (_ICMP4, _REPLY4)
    right = (protocol, message[0]) == reply and probe.token in message
    return Answer() if right and len(frame) == len(probe.data) else None


def _echo(to: IPv6Address | IPv4Address, token: bytes, size: int) -> bytes:
    six = isinstance(to, IPv6Address)
    header = (_IP6_BYTES if six else _IP4_BYTES) + _ECHO_BYTES
    filling = bytes(max(0, size - header - len(token)))
    kind = _ECHO6 if six else _ECHO4
    message = struct.pack("!BBHHH", kind, 0, 0, int.from_bytes(token[:2]), 1) + token + filling
    # Of IPv6 the kernel fills it in, or `_from_outside`.
    return message if six else _summed(message, 2, b"")


def _segment(own: int, port: int, flags: int, number: int) -> bytes:
    return struct.pack("!HHIIBBHHH", own, port, number, 0, 5 << 4, flags, 65_535, 0, 0)


def _from_outside(
    to: IPv6Address | IPv4Address, payload: bytes, uplink_mac: str, protocol: int = 0
) -> bytes:
    macs = bytes.fromhex((uplink_mac + PROBER_MAC).replace(":", ""))
    if isinstance(to, IPv6Address):
        protocol = protocol or _ICMP6
        ends = PROBER.packed + to.packed
        pseudo = ends + struct.pack("!II", len(payload), protocol)
        summed = _summed(payload, 16 if protocol == _TCP else 2, pseudo)
        start = struct.pack("!IHBB", 6 << 28, len(payload), protocol, _HOPS)
        return macs + _ETH_IP6 + start + ends + summed
    ends = PROBER_IPV4.packed + to.packed
    fields = (0x45, 0, _IP4_BYTES + len(payload), 0, 0x4000, _HOPS, _ICMP4, 0)
    header = _summed(struct.pack("!BBHHHBBH", *fields) + ends, 10, b"")
    return macs + _ETH_IP4 + header + payload


def _summed(data: bytes, at: int, pseudo: bytes) -> bytes:
    """Data with its Internet checksum (RFC 1071)."""
    whole = pseudo + data + bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(whole) // 2}H", whole))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return data[:at] + struct.pack("!H", ~total & 0xFFFF) + data[at + 2 :]
