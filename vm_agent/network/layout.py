"""What has to stand on a host so that its VMs are connected: links, addresses, routes and the like.

Pure: from settings and VMs to items. Taps are routed, not bridged, so no VM ever sees another one's
Ethernet frames; see docs/network.md for the picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import NamedTuple
from uuid import UUID

from vm_agent.network.attachment import (
    GATEWAY_IPV4,
    GATEWAY_LINK_LOCAL,
    GATEWAY_MAC,
    Attachment,
)
from vm_agent.network.items import Address, Item, Link, Neighbour, Route
from vm_agent.network.leases import Ranges
from vm_agent.network.probes import PROBER, PROBER_IPV4, PROBER_LINK_LOCAL, PROBER_MAC
from vm_agent.network.shaping import limit_of

UPLINK = "up0"
"""The fabric's way out, inside."""

_OUTSIDE, _INSIDE = IPv6Address("fe80::dec:a"), IPv6Address("fe80::dec:b")
"""The two ends of a pair of ours."""

_ANYWHERE_V6, _ANYWHERE_V4 = "::/0", "0.0.0.0/0"


class Owner(NamedTuple):
    """Whose a tap is, as its alias tells."""

    identity: str
    vm_id: UUID
    incarnation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A host's fabric.

    Attributes:
        identity: Of the agent; tells its things from another agent's.
        ranges: Where VMs' addresses are from.
        interface: The host's interface that becomes the uplink; empty for a pair of ours.
        next_hop: Who routes what leaves through `interface`; empty where routes are not ours.
        mtu: Of the uplink and, at most, of taps.
    """

    identity: str
    ranges: Ranges
    interface: str = ""
    next_hop: str = ""
    mtu: int = 1500

    @property
    def netns(self) -> str:
        """The fabric's namespace."""
        return netns_of(self.identity)

    @property
    def outer(self) -> str:
        """The pair's other end, where the host's own routes are."""
        return f"dcf{self.identity}"

    @property
    def alias(self) -> str:
        """What says that a link of the host is ours."""
        return f"decisec {self.identity} uplink"

    def inside(self) -> set[Item]:
        """What stands in the fabric before the first VM."""
        ranges = self.ranges
        items: set[Item] = {
            Address("lo", f"{ranges.gateway}/128"),
            Route(str(ranges.prefix), "", ""),
            *(Route(str(network), "", "") for network in ranges.ipv4),
        }
        if ranges.ipv4:
            items.add(Address("lo", f"{GATEWAY_IPV4}/32"))
        hop = self.next_hop if self.interface else str(_OUTSIDE)
        if not self.interface:
            items.add(Address(UPLINK, f"{_INSIDE}/64"))
        if not self.interface:
            # What answers a probe leaves through the uplink, and nobody takes it there.
            items.add(Neighbour(UPLINK, str(PROBER_LINK_LOCAL), PROBER_MAC))
            items.add(Route(f"{PROBER}/128", str(PROBER_LINK_LOCAL), UPLINK))
            if ranges.ipv4:
                items.add(Route(f"{PROBER_IPV4}/32", str(PROBER_LINK_LOCAL), UPLINK))
        if hop:
            items.add(Route(_ANYWHERE_V6, hop, UPLINK))
            if ranges.ipv4:
                items.add(Route(_ANYWHERE_V4, hop, UPLINK))
        return items

    def outside(self) -> set[Item]:
        """What stands beside the host's own links; nothing where an interface is the uplink."""
        if self.interface:
            return set()
        ranges = self.ranges
        return {
            Address(self.outer, f"{_OUTSIDE}/64"),
            *(
                Route(str(network), str(_INSIDE), self.outer)
                for network in (ranges.prefix, *ranges.ipv4)
            ),
        }

    def tap(self, vm: Attachment) -> Link:
        """A VM's link."""
        return Link(vm.tap, self.alias_of(vm), min(vm.mtu, self.mtu), GATEWAY_MAC, up=True)

    def behind(self, vm: Attachment) -> set[Item]:
        """What stands for a VM beside its link.

        Nothing of it has to be asked for on the link: a guest that says nothing or anything fills
        no table of the host.
        """
        guest = str(vm.link_local)
        items: set[Item] = {
            Address(vm.tap, f"{GATEWAY_LINK_LOCAL}/64"),
            Neighbour(vm.tap, guest, vm.mac),
            *(Route(str(network), guest, vm.tap) for network in vm.addresses),
        }
        if vm.rx_bytes_per_s:
            items.add(limit_of(vm.tap, vm.rx_bytes_per_s, self.tap(vm).mtu))
        if vm.ipv4 is not None:
            items.add(Neighbour(vm.tap, str(vm.ipv4), vm.mac))
            items.add(Route(f"{vm.ipv4}/32", "", vm.tap))
        return items

    def alias_of(self, vm: Attachment) -> str:
        """What a tap is called at length, for people and for the next agent."""
        return f"decisec {self.identity} {vm.vm_id} {vm.incarnation} {vm.customer_id}"


def netns_of(identity: str) -> str:
    """The name of an agent's fabric."""
    return f"decisec-fabric-{identity}"


def owner_in(alias: str) -> Owner | None:
    """Whose a link is by its alias; None for what is not a tap of any agent."""
    match alias.split(" "):
        case ["decisec", identity, vm_id, incarnation, _]:
            try:
                return Owner(identity, UUID(vm_id), int(incarnation))
            except ValueError:
                return None
        case _:
            return None
