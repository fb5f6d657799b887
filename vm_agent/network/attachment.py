"""A VM on its host's fabric, as plain values: what links, addresses and rules are made from.

Whoever gives out slots and addresses makes an `Attachment`; whoever makes links, routes and rules
takes it. All names follow from the slot, so that what is on a host can be told from what should be.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from uuid import UUID

GATEWAY_LINK_LOCAL = IPv6Address("fe80::1")
"""The host, on every tap."""

GATEWAY_IPV4 = IPv4Address("169.254.0.1")
"""The host, on every tap, for VMs that have IPv4."""

GATEWAY_MAC = "02:dc:00:00:00:01"
"""The host's, on every tap: a guest that goes on from a snapshot still knows it."""

_FIRST_INDEX = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A port, or a run of ports, that others may begin to talk to.

    Attributes:
        protocol: `tcp` or `udp`.
        first: From 1 to 65535.
        last: Not below `first`.
    """

    protocol: str
    first: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """All that the host's network has to know of one VM.

    Attributes:
        slot: From 1 to 2**32 - 1; this host's number for the VM, kept with it from create to
            delete and not given out again soon.
        tenant: From 1 to 2**32 - 1 less what reasons of drops take; the host's number for the
            customer, the packet mark of what its VMs send.
        mac: The guest's, lower case with colons.
        addresses: IPv6 networks whose addresses the VM may send from: a /128 or a /64. Its
            link-local address, which follows from the MAC (EUI-64), comes on top.
        ipv4: The VM's one IPv4 address, if it has one.
        open_inbound: Anybody may begin to talk to it; otherwise only VMs of the same customer,
            peers, and those named by `ports`. Answers to what it began always come in.
        ports: What is open to everybody where `open_inbound` is false.
        peers: Customers' numbers whose VMs may talk to it, and it to theirs.
        quarantined: Nothing goes in or out, and nothing else changes.
        incarnation: Whose interface it is; each incarnation has one of its own.
        mtu: The largest packet on it, in bytes.
        rx_bytes_per_s: The most that the host lets it receive; 0 where that is not for the host.
        tx_bytes_per_s: The most that the host lets it send, likewise.
    """

    slot: int
    vm_id: UUID
    customer_id: str
    tenant: int
    mac: str
    addresses: tuple[IPv6Network, ...] = ()
    ipv4: IPv4Address | None = None
    open_inbound: bool = True
    ports: tuple[Port, ...] = ()
    peers: frozenset[int] = field(default_factory=frozenset)
    quarantined: bool = False
    incarnation: int = 0
    mtu: int = 1500
    rx_bytes_per_s: int = 0
    tx_bytes_per_s: int = 0

    @property
    def tap(self) -> str:
        """The interface's name in the fabric."""
        return tap_of(self.slot)

    @property
    def index(self) -> int:
        """The interface's index in the fabric.

        The kernel would give a freed one out again at once, and whoever still asks for the bytes of
        one VM would be told those of another.
        """
        return index_of(self.tap)

    @property
    def link_local(self) -> IPv6Address:
        """The guest's link-local address (RFC 4291, appendix A)."""
        return IPv6Address("fe80::") + int(interface_id(self.mac))


def interface_id(mac: str) -> IPv6Address:
    """The lower half of the addresses that a guest makes of its MAC (RFC 4291, appendix A)."""
    octets = [int(part, 16) for part in mac.split(":")]
    return IPv6Address(bytes([*(0,) * 8, octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:]]))


def tap_of(slot: int) -> str:
    """The name in the fabric of a slot's interface."""
    return f"vm{slot:08x}"


def index_of(tap: str) -> int:
    """The index in the fabric of an interface of this name."""
    return _FIRST_INDEX + int(tap.removeprefix("vm"), 16) % (2**31 - _FIRST_INDEX)
