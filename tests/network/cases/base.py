"""The world that packets are sent in, and what a case is.

Alice has VMs 1, 2, 5 (closed to outsiders), 6 (with a /64) and 9 (which may send 2000 bytes a
second, and 64 KiB at first); Bob has 3; Carol has 4 and is Alice's peer; 7 is Bob's and
quarantined; 8 has a tap and no rules. 1, 2, 3 and 5 have IPv4 too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, IPv6Network

from tests.support import packets as p
from tests.support.fabric import (
    GATEWAY_MAC,
    OUTSIDE,
    UPLINK_MAC,
    VNET_HEADER_BYTES,
    WAN_MAC,
    vm,
)
from vm_agent.network.attachment import Attachment, Port
from vm_agent.network.reasons import Reason

ALICE, BOB, CAROL = 11, 12, 13
UPLINK, HOST = "uplink", "host"


def _v4(slot: int) -> IPv4Address:
    return IPv4Address("192.0.2.0") + slot


VMS: dict[str, Attachment] = {
    "alice 1": vm(1, "alice", ALICE, ipv4=_v4(1), peers=frozenset({CAROL})),
    "alice 2": vm(2, "alice", ALICE, ipv4=_v4(2), peers=frozenset({CAROL})),
    "bob": vm(3, "bob", BOB, ipv4=_v4(3)),
    "carol": vm(4, "carol", CAROL, peers=frozenset({ALICE})),
    "closed": vm(
        5,
        "alice",
        ALICE,
        ipv4=_v4(5),
        open_inbound=False,
        ports=(
            Port(protocol="tcp", first=22, last=22),
            Port(protocol="udp", first=5000, last=5010),
        ),
    ),
    "wide": vm(6, "alice", ALICE, addresses=(IPv6Network("2001:db8:1:6::/64"),)),
    "cut": vm(7, "bob", BOB, quarantined=True),
    "bare": vm(8, "bob", BOB),
    "slow": vm(9, "alice", ALICE, tx_bytes_per_s=2000),
}
UNATTACHED = frozenset({"bare"})

OUTSIDE_V4 = IPv4Address("203.0.113.99")
HERE = VMS["alice 1"].addresses[0].network_address
HERE_V4 = _v4(1)
LINK = VMS["alice 1"].link_local
ROUTER = IPv6Address("fe80::1")
ALL_NODES, ALL_ROUTERS = IPv6Address("ff02::1"), IPv6Address("ff02::2")
NEVER = (
    "alice 1",
    "alice 2",
    "bob",
    "carol",
    "closed",
    "wide",
    "cut",
    "bare",
    "slow",
    UPLINK,
    HOST,
)


def address(name: str) -> IPv6Address:
    """A VM's first."""
    found = VMS[name].addresses[0]
    return found.network_address + (0x99 if found.prefixlen == 64 else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A frame, and what is to become of it.

    Attributes:
        at: Who sends: a VM's name, or `uplink` for somebody outside.
        to: Where `look_for` is to be seen: VMs, `uplink`, `host` (its sockets). Else nowhere.
        reason: What the drop is counted as; None for what the kernel itself refuses.
        times: How often it is sent; if more than once, what is dropped are those too many.
        header: What virtio says about the frame.
        unheard: It is no attack: it passes, and there is nobody to whom it is something.
    """

    at: str
    frame: bytes
    to: frozenset[str] = frozenset()
    reason: Reason | None = None
    look_for: bytes = b""
    times: int = 1
    header: bytes = bytes(VNET_HEADER_BYTES)
    unheard: bool = False

    @property
    def mark(self) -> bytes:
        """What tells the packet from others, wherever it gets."""
        return self.look_for or self.frame[-8:]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One or more frames in turn; an attack if one of them is to be dropped."""

    name: str
    category: str
    steps: tuple[Step, ...]

    @property
    def attack(self) -> bool:
        """Whether any of it is to go nowhere."""
        return any(not step.to and not step.unheard for step in self.steps)

    @property
    def outcome(self) -> str:
        """For people: the last step's."""
        last = self.steps[-1]
        if last.to or last.unheard:
            return "passes"
        return f"dropped: `{last.reason.label}`" if last.reason else "dropped by the kernel"


class Cases:
    """Collects the cases of a category.

    Args:
        category: For people.
        at: Who sends, unless a case says otherwise.
    """

    def __init__(self, category: str, at: str = "alice 1") -> None:
        self.category = category
        self.at = at
        self.all: list[Case] = []
        self._count = 0

    def data(self) -> bytes:
        """Eight octets that are in no other packet."""
        self._count += 1
        return f"{self.category[:4]:_<4}{self._count:04d}".encode()

    def drop(self, name: str, frame: bytes, reason: Reason | None, **more: object) -> None:
        """A frame that goes nowhere."""
        self.talk(name, self.dropped(frame, reason, **more))

    def passes(self, name: str, frame: bytes, *to: str, **more: object) -> None:
        """A frame that arrives."""
        self.talk(name, self.seen(frame, *to, **more))

    def talk(self, name: str, *steps: Step) -> None:
        """Frames in turn."""
        self.all.append(Case(name=name, category=self.category, steps=steps))

    def dropped(self, frame: bytes, reason: Reason | None, **more: object) -> Step:
        """A step that goes nowhere."""
        return replace(Step(at=self.at, frame=frame, reason=reason), **more)  # type: ignore[arg-type]

    def seen(self, frame: bytes, *to: str, **more: object) -> Step:
        """A step that arrives."""
        return replace(Step(at=self.at, frame=frame, to=frozenset(to)), **more)  # type: ignore[arg-type]


def framed(packet: bytes, at: str = "alice 1", to: str = GATEWAY_MAC) -> bytes:
    """A packet in a VM's frame to the gateway, by IP version."""
    kind = p.ETH_IP6 if packet[0] >> 4 == 6 else p.ETH_IP4
    return p.ether(VMS[at].mac, to, kind, packet)


def multicast_mac(to: IPv6Address) -> str:
    """The MAC of a multicast group (RFC 2464)."""
    return ":".join(f"{octet:02x}" for octet in (0x33, 0x33, *to.packed[-4:]))


def six(
    protocol: int,
    payload: bytes,
    headers: Sequence[p.Header] = (),
    *,
    at: str = "alice 1",
    source: IPv6Address | None = None,
    to: IPv6Address = OUTSIDE,
    hops: int = 64,
    length: int | None = None,
) -> bytes:
    """A frame with an IPv6 packet; to a group, its frame is too."""
    packet = p.ip6(source or address(at), to, protocol, payload, headers, hops=hops, length=length)
    return framed(packet, at, multicast_mac(to) if to.is_multicast else GATEWAY_MAC)


def datagram(
    data: bytes,
    headers: Sequence[p.Header] = (),
    *,
    at: str = "alice 1",
    source: IPv6Address | None = None,
    to: IPv6Address = OUTSIDE,
    ports: tuple[int, int] = (4000, 4001),
    hops: int = 64,
) -> bytes:
    """A frame with a UDP datagram over IPv6."""
    source = source or address(at)
    payload = p.udp(source, to, *ports, data)
    return six(p.UDP, payload, headers, at=at, source=source, to=to, hops=hops)


def message(
    kind: int,
    body: bytes,
    headers: Sequence[p.Header] = (),
    *,
    at: str = "alice 1",
    source: IPv6Address | None = None,
    to: IPv6Address = ALL_NODES,
    hops: int = 255,
    code: int = 0,
) -> bytes:
    """A frame with ICMPv6, of neighbour discovery unless asked otherwise."""
    source = source or VMS[at].link_local
    payload = p.icmp6(source, to, kind, body, code)
    return six(p.ICMP6, payload, headers, at=at, source=source, to=to, hops=hops)


def segment(
    flags: int,
    data: bytes,
    *,
    at: str = "alice 1",
    source: IPv6Address | None = None,
    to: IPv6Address = OUTSIDE,
    ports: tuple[int, int] = (4000, 80),
) -> bytes:
    """A frame with a TCP segment over IPv6."""
    source = source or address(at)
    return six(p.TCP, p.tcp(source, to, *ports, flags, data), at=at, source=source, to=to)


def four(
    protocol: int,
    payload: bytes,
    *,
    at: str = "alice 1",
    source: IPv4Address = HERE_V4,
    to: IPv4Address = OUTSIDE_V4,
    link: str = GATEWAY_MAC,
    **more: object,
) -> bytes:
    """A frame with an IPv4 packet."""
    return framed(p.ip4(source, to, protocol, payload, **more), at, link)  # type: ignore[arg-type]


def from_outside(packet: bytes) -> bytes:
    """A packet in a frame from the world to the uplink."""
    kind = p.ETH_IP6 if packet[0] >> 4 == 6 else p.ETH_IP4
    return p.ether(WAN_MAC, UPLINK_MAC, kind, packet)
