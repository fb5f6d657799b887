"""What is wrong with the frame itself: addresses, types, tags."""

from __future__ import annotations

import struct

from tests.network.cases.base import (
    ALL_NODES,
    HERE,
    LINK,
    VMS,
    Cases,
    address,
    framed,
    multicast_mac,
)
from tests.support import packets as p
from tests.support.fabric import GATEWAY, GATEWAY_MAC, OUTSIDE
from vm_agent.network.reasons import Reason

_MAC = VMS["alice 1"].mac
macs = Cases("MAC addresses")


def _datagram(cases: Cases, to: object = OUTSIDE) -> bytes:
    data = cases.data()
    assert isinstance(to, type(OUTSIDE))
    return p.ip6(HERE, to, p.UDP, p.udp(HERE, to, 4000, 4001, data))


for name, source in (
    ("of another VM", VMS["alice 2"].mac),
    ("of the gateway", GATEWAY_MAC),
    ("of a group", "07:00:00:00:00:01"),
    ("broadcast", "ff:ff:ff:ff:ff:ff"),
    ("zero", "00:00:00:00:00:00"),
):
    frame = p.ether(source, GATEWAY_MAC, p.ETH_IP6, _datagram(macs))
    macs.drop(f"source MAC {name}", frame, Reason.MAC)
macs.drop(
    "source MAC of another VM, with that VM's IPv6 source",
    p.ether(
        VMS["bob"].mac,
        GATEWAY_MAC,
        p.ETH_IP6,
        p.ip6(
            address("bob"),
            OUTSIDE,
            p.UDP,
            p.udp(address("bob"), OUTSIDE, 4000, 4001, macs.data()),
        ),
    ),
    Reason.MAC,
)
for name, destination in (
    ("of another VM", VMS["bob"].mac),
    ("broadcast, with a packet to be routed", "ff:ff:ff:ff:ff:ff"),
    ("of a group, with a packet to be routed", multicast_mac(ALL_NODES)),
):
    macs.drop(
        f"destination MAC {name}",
        p.ether(_MAC, destination, p.ETH_IP6, _datagram(macs)),
        Reason.MAC_DESTINATION,
    )
macs.drop(
    "destination MAC broadcast, with a packet to the host",
    p.ether(_MAC, "ff:ff:ff:ff:ff:ff", p.ETH_IP6, _datagram(macs, GATEWAY)),
    Reason.MAC_DESTINATION,
)

types = Cases("Frame types")


def _advertisement(data: bytes) -> bytes:
    body = p.router_advertisement(_MAC, data)
    return p.ip6(LINK, ALL_NODES, p.ICMP6, p.icmp6(LINK, ALL_NODES, p.RA, body), hops=255)


_GROUP = multicast_mac(ALL_NODES)
_VLAN, _QINQ = p.ETH_VLAN << 16, p.ETH_QINQ << 16
for name, tags in (
    ("in an 802.1Q tag of no VLAN", (_VLAN,)),
    ("in an 802.1Q tag with a priority", (_VLAN | 7 << 13,)),
    ("in an 802.1Q tag of VLAN 5", (_VLAN | 5,)),
    ("in an 802.1ad tag of no VLAN", (_QINQ,)),
    ("in two tags", (_QINQ | 5, _VLAN | 6)),
    ("in two tags of no VLAN", (_VLAN, _VLAN)),
    ("in the old tag 0x9100", (0x9100 << 16 | 5,)),
):
    frame = p.ether(_MAC, GATEWAY_MAC, p.ETH_IP6, _datagram(types), tags)
    types.drop(f"a datagram {name}", frame, Reason.ETHERTYPE)
    frame = p.ether(_MAC, _GROUP, p.ETH_IP6, _advertisement(types.data()), tags)
    types.drop(f"a router advertisement {name}", frame, Reason.ETHERTYPE)
_SNAP = b"\xaa\xaa\x03\0\0\0" + struct.pack(">H", p.ETH_IP6)
for name, kind, payload in (
    ("a router advertisement in LLC and SNAP", 200, _SNAP + _advertisement(types.data())),
    ("a spanning tree BPDU in LLC", 38, b"\x42\x42\x03" + bytes(27) + types.data()),
    ("LLDP", 0x88CC, b"\x02\x07\x04" + bytes(6) + types.data()),
    ("EAPOL", 0x888E, b"\x01\x01\0\0" + types.data()),
    ("PPPoE with IPv6", 0x8864, b"\x11\0\0\x01\0\x40\0\x57" + _datagram(types)),
    ("MPLS with IPv6", 0x8847, b"\0\0\x21\x40" + _datagram(types)),
    ("RARP", 0x8035, bytes(20) + types.data()),
    ("MACsec", 0x88E5, bytes(20) + types.data()),
    ("precision time", 0x88F7, bytes(40) + types.data()),
    ("a loopback test", 0x9000, bytes(40) + types.data()),
    ("ATA over Ethernet", 0x88A2, bytes(40) + types.data()),
    ("transparent Ethernet bridging", 0x6558, bytes(40) + types.data()),
    ("type zero", 0, bytes(40) + types.data()),
):
    types.drop(name, p.ether(_MAC, _GROUP, kind, payload), Reason.ETHERTYPE)
types.drop(
    "IPv6 that says it is IPv4",
    p.ether(_MAC, GATEWAY_MAC, p.ETH_IP4, _datagram(types)),
    None,
)
types.drop("a frame of 14 octets", framed(b"\x60")[:14], Reason.HOP_BY_HOP)
types.drop("an IPv6 header cut short", framed(_datagram(types)[:30]), None)

CASES = [*macs.all, *types.all]
