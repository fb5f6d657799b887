"""What a guest lets the host finish: checksums, and segments larger than a frame."""

from __future__ import annotations

import struct

from tests.network.cases.base import ALL_NODES, HERE, VMS, Cases, address, datagram, segment, six
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
CASES = [*offload.all]
