"""Packets as bytes, right in every field unless asked otherwise: Ethernet, IPv6, IPv4, ARP."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

Address = IPv6Address | IPv4Address

ETH_IP6, ETH_IP4, ETH_ARP, ETH_VLAN, ETH_QINQ = 0x86DD, 0x0800, 0x0806, 0x8100, 0x88A8

HOP_BY_HOP, ICMP4, IPIP, TCP, UDP, IPV6, ROUTING, FRAGMENT = 0, 1, 4, 6, 17, 41, 43, 44
GRE, ESP, AH, ICMP6, NO_NEXT, DESTINATION, SCTP, MOBILITY = 47, 50, 51, 58, 59, 60, 132, 135

UNREACHABLE, TOO_BIG, TIME_EXCEEDED, PROBLEM, ECHO, ECHO_REPLY = 1, 2, 3, 4, 128, 129
MLD_QUERY, MLD_REPORT, MLD_DONE, MLD2_REPORT = 130, 131, 132, 143
RS, RA, NS, NA, REDIRECT = 133, 134, 135, 136, 137

FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32


class Header(NamedTuple):
    """An extension header: its number, and what comes after its next-header octet."""

    number: int
    body: bytes


PAD = b"\x01\x04" + bytes(4)
"""The option that fills a header's first eight octets."""


def options(number: int, content: bytes = PAD) -> Header:
    """Hop-by-hop or destination options; the content fills up to a multiple of eight, less two."""
    return Header(number, bytes([(len(content) + 2) // 8 - 1]) + content)


def routing(kind: int, *via: IPv6Address, left: int = 1) -> Header:
    """A routing header through addresses."""
    addresses = b"".join(address.packed for address in via)
    return Header(ROUTING, bytes([len(via) * 2, kind, left, 0, 0, 0, 0]) + addresses)


def fragment(offset: int, *, more: bool, number: int = 7) -> Header:
    """A fragment header; the offset counts eights of octets."""
    return Header(FRAGMENT, struct.pack(">xHI", offset << 3 | more, number))


def mac(text: str) -> bytes:
    """The octets of a MAC address."""
    return bytes.fromhex(text.replace(":", ""))


def ether(source: str, to: str, kind: int, payload: bytes, tags: Sequence[int] = ()) -> bytes:
    """A frame; tags are (type << 16 | control) of VLANs, outermost first."""
    tagging = b"".join(struct.pack(">I", tag) for tag in tags)
    return mac(to) + mac(source) + tagging + struct.pack(">H", kind) + payload


def ip6(
    source: IPv6Address,
    to: IPv6Address,
    protocol: int,
    payload: bytes,
    headers: Sequence[Header] = (),
    *,
    hops: int = 64,
    length: int | None = None,
) -> bytes:
    """An IPv6 packet with extension headers."""
    numbers = [*(header.number for header in headers), protocol]
    chain = b"".join(
        bytes([after]) + header.body for header, after in zip(headers, numbers[1:], strict=True)
    )
    size = len(chain) + len(payload) if length is None else length
    start = struct.pack(">IHBB", 6 << 28, size, numbers[0], hops)
    return start + source.packed + to.packed + chain + payload


def ip4(
    source: IPv4Address,
    to: IPv4Address,
    protocol: int,
    payload: bytes,
    *,
    ttl: int = 64,
    option: bytes = b"",
    fragment_field: int = 0,
    words: int | None = None,
    length: int | None = None,
) -> bytes:
    """An IPv4 packet; `fragment_field` is flags and offset as on the wire."""
    size = 20 + len(option) + len(payload) if length is None else length
    first = 0x40 | (5 + len(option) // 4 if words is None else words)
    fields = (first, 0, size, 7, fragment_field, ttl, protocol, 0)
    start = struct.pack(">BBHHHBBH", *fields) + source.packed + to.packed + option
    return start[:10] + struct.pack(">H", checksum(start)) + start[12:] + payload


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def pseudo(source: Address, to: Address, protocol: int, length: int) -> bytes:
    """What checksums of transports take in besides."""
    return source.packed + to.packed + struct.pack(">II", length, protocol)


def _summed(packet: bytes, at: int, source: Address, to: Address, protocol: int) -> bytes:
    total = checksum(pseudo(source, to, protocol, len(packet)) + packet) or 0xFFFF
    return packet[:at] + struct.pack(">H", total) + packet[at + 2 :]


def udp(source: Address, to: Address, sport: int, dport: int, data: bytes) -> bytes:
    """A datagram for a packet between these addresses."""
    packet = struct.pack(">HHHH", sport, dport, 8 + len(data), 0) + data
    return _summed(packet, 6, source, to, UDP)


def tcp(source: Address, to: Address, sport: int, dport: int, flags: int, data: bytes) -> bytes:
    """A segment."""
    packet = struct.pack(">HHIIBBHHH", sport, dport, 1, 1, 5 << 4, flags, 65535, 0, 0) + data
    return _summed(packet, 16, source, to, TCP)


def icmp6(source: IPv6Address, to: IPv6Address, kind: int, body: bytes, code: int = 0) -> bytes:
    """ICMPv6; the body is what follows the checksum."""
    return _summed(struct.pack(">BBH", kind, code, 0) + body, 2, source, to, ICMP6)


def icmp4(kind: int, body: bytes, code: int = 0) -> bytes:
    """ICMP; the body is what follows the checksum."""
    packet = struct.pack(">BBH", kind, code, 0) + body
    return packet[:2] + struct.pack(">H", checksum(packet)) + packet[4:]


def echo(number: int, data: bytes) -> bytes:
    """The body of a ping and its answer."""
    return struct.pack(">HH", number, 1) + data


def router_advertisement(source_mac: str, data: bytes) -> bytes:
    """The body of one that offers itself as router, and a prefix that holds `data` (8 octets)."""
    prefix = struct.pack(">BBBBIII", 3, 4, 64, 0xC0, 86400, 14400, 0) + data + bytes(8)
    return struct.pack(">BBHII", 64, 0, 1800, 0, 0) + b"\x01\x01" + mac(source_mac) + prefix


def neighbor(target: IPv6Address, link: str | None, *, flags: int = 0, option: int = 1) -> bytes:
    """The body of a solicitation (option 1) or an advertisement (option 2)."""
    own = bytes([option, 1]) + mac(link) if link is not None else b""
    return struct.pack(">I", flags << 24) + target.packed + own


def arp(
    operation: int,
    sender: tuple[str, IPv4Address],
    target: tuple[str, IPv4Address],
    *,
    address_bytes: int = 4,
) -> bytes:
    """ARP for IPv4 over Ethernet."""
    start = struct.pack(">HHBBH", 1, ETH_IP4, 6, address_bytes, operation)
    ends = (mac(link) + address.packed for link, address in (sender, target))
    return start + b"".join(ends)
