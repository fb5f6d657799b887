"""What a guest lets the host finish: checksums, and segments larger than a frame."""

from __future__ import annotations

import struct

from tests.network.cases.base import (
    ALL_NODES,
    HERE,
    HERE_V4,
    OUTSIDE_V4,
    VMS,
    Cases,
    address,
    datagram,
    four,
    segment,
    six,
)
from tests.support import packets as p
from vm_agent.network.reasons import Reason

_NEEDS_CHECKSUM = 1
_NONE, _TCP4, _UDP, _TCP6, _UDP_L4 = 0, 1, 3, 4, 5


def virtio(
    flags: int = _NEEDS_CHECKSUM,
    kind: int = _NONE,
    *,
    header: int = 0,
    size: int = 0,
    start: int = 0,
    offset: int = 0,
) -> bytes:
    """`struct virtio_net_hdr_v1`, as linux/virtio_net.h has it."""
    return struct.pack("<BBHHHHH", flags, kind, header, size, start, offset, 0)


offload = Cases("Offload")
_L4 = 14 + 40
_FRIEND = address("alice 2")
_GSO = virtio(kind=_TCP6, header=_L4 + 20, size=1200, start=_L4, offset=16)
offload.passes(
    "a datagram whose checksum the host is to finish",
    datagram(offload.data()),
    "uplink",
    header=virtio(start=_L4, offset=6),
)
offload.passes(
    "the same to a VM",
    datagram(offload.data(), to=_FRIEND),
    "alice 2",
    header=virtio(start=_L4, offset=6),
)
offload.passes(
    "6000 octets of TCP in one frame",
    segment(p.ACK, bytes(5992) + offload.data()),
    "uplink",
    header=_GSO,
)
offload.passes(
    "6000 octets of TCP to a VM",
    segment(p.ACK, bytes(5992) + offload.data(), to=_FRIEND),
    "alice 2",
    header=_GSO,
)
offload.drop(
    "the same to another customer",
    segment(p.ACK, bytes(5992) + offload.data(), to=address("bob")),
    Reason.TENANT,
    header=_GSO,
)
offload.drop(
    "the same in another customer's name",
    segment(p.ACK, bytes(5992) + offload.data(), source=address("bob")),
    Reason.SOURCE,
    header=_GSO,
)
offload.drop(
    "a router advertisement whose checksum the host is to finish",
    six(
        p.ICMP6,
        p.icmp6(
            VMS["alice 1"].link_local,
            ALL_NODES,
            p.RA,
            p.router_advertisement(VMS["alice 1"].mac, offload.data()),
        ),
        source=VMS["alice 1"].link_local,
        to=ALL_NODES,
        hops=255,
    ),
    Reason.RA_GUARD,
    header=virtio(start=_L4, offset=2),
)
for name, header in (
    ("a checksum behind the end", virtio(start=5000, offset=6)),
    ("a checksum that begins nowhere", virtio(start=65535, offset=65535)),
    ("a header longer than the frame", virtio(kind=_TCP6, header=9000, size=1200, start=9000)),
    ("segments of no octets", virtio(kind=_TCP6, header=_L4 + 20, size=0, start=_L4, offset=16)),
    ("an unknown kind", virtio(kind=77, header=_L4 + 20, size=1200, start=_L4, offset=16)),
    ("TCP over IPv4 that is IPv6", virtio(kind=_TCP4, header=54, size=1200, start=34, offset=16)),
    ("UDP that is TCP", virtio(kind=_UDP_L4, header=_L4 + 8, size=1200, start=_L4, offset=6)),
):
    frame = segment(p.ACK, bytes(5992) + offload.data())
    offload.drop(f"segments with {name}", frame, None, header=header)
offload.drop(
    "segments of neighbour discovery",
    six(
        p.ICMP6,
        p.icmp6(HERE, _FRIEND, p.RA, bytes(5992) + offload.data()),
        to=_FRIEND,
        hops=255,
    ),
    Reason.RA_GUARD,
    header=virtio(kind=_TCP6, header=_L4 + 20, size=1200, start=_L4, offset=16),
)
written = Cases("Checksums written elsewhere")


def _summing(frame: bytes, start: int, at: int, value: int) -> tuple[bytes, bytes]:
    """A frame, and what the guest says of it, so that the host writes `value` at an octet.

    The host sums from `start` to the end, where two octets of data make it come out right.
    """
    frame = frame[:-2] + bytes(2)
    needed = ((value ^ 0xFFFF) - (p.checksum(frame[start:]) ^ 0xFFFF)) % 0xFFFF
    return frame[:-2] + struct.pack(">H", needed), virtio(start=start, offset=at - start)


def _written(name: str, frame: bytes, at: int, value: int, reason: Reason) -> None:
    changed, header = _summing(frame, 20, at, value)
    written.drop(name, changed, reason, header=header)


_SOURCE6, _TO6, _SOURCE4 = 14 + 8, 14 + 24, 14 + 12
_written(
    "into the source: another VM's address",
    datagram(written.data()),
    _SOURCE6 + 14,
    int(address("bob")) & 0xFFFF,
    Reason.SOURCE,
)
_written(
    "into the source: another prefix", datagram(written.data()), _SOURCE6, 0x2A00, Reason.SOURCE
)
_written(
    "into the source: another VM's IPv4 address",
    four(p.UDP, p.udp(HERE_V4, OUTSIDE_V4, 1, 2, written.data())),
    _SOURCE4 + 2,
    0x0203,
    Reason.SOURCE_V4,
)
_written(
    "into the destination: another customer's VM",
    datagram(written.data(), to=_FRIEND),
    _TO6 + 14,
    int(address("bob")) & 0xFFFF,
    Reason.TENANT,
)
_written(
    "into the destination: a private network",
    datagram(written.data()),
    _TO6,
    0xFD00,
    Reason.DESTINATION,
)
_written(
    "into the next header: hop-by-hop options",
    datagram(written.data()),
    14 + 6,
    0x0040,
    Reason.HOP_BY_HOP,
)
_written(
    "into the next header: a router advertisement",
    six(
        p.UDP,
        p.icmp6(
            VMS["alice 1"].link_local,
            ALL_NODES,
            p.RA,
            p.router_advertisement(VMS["alice 1"].mac, written.data()),
        ),
        source=VMS["alice 1"].link_local,
        to=ALL_NODES,
    ),
    14 + 6,
    0x3AFF,
    Reason.RA_GUARD,
)
_written(
    "into the ports: a DHCPv6 server",
    datagram(written.data(), to=_FRIEND),
    _L4,
    547,
    Reason.DHCP_SERVER,
)

CASES = [*offload.all, *written.all]
