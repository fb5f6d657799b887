"""IPv4 and ARP, for VMs that have it, and for one that has not."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

from tests.network.cases.base import HERE_V4, OUTSIDE_V4, VMS, Cases, four
from tests.support import packets as p
from tests.support.fabric import GATEWAY_MAC
from vm_agent.network.attachment import GATEWAY_IPV4
from vm_agent.network.reasons import Reason

_MAC, _FRIEND_MAC = VMS["alice 1"].mac, VMS["alice 2"].mac
_FRIEND, _BOB = IPv4Address("192.0.2.2"), IPv4Address("192.0.2.3")

sources = Cases("IPv4 sources")


def _udp(
    cases: Cases,
    source: IPv4Address = HERE_V4,
    to: IPv4Address = OUTSIDE_V4,
    ports: tuple[int, int] = (4000, 4001),
    **more: object,
) -> bytes:
    payload = p.udp(source, to, *ports, cases.data())
    return four(p.UDP, payload, **{"source": source, "to": to, **more})  # type: ignore[arg-type]


for name, source in (
    ("of the same customer's VM", _FRIEND),
    ("of another customer's VM", _BOB),
    ("of the gateway", GATEWAY_IPV4),
    ("of somebody elsewhere", IPv4Address("198.51.100.1")),
    ("of the loopback", IPv4Address("127.0.0.1")),
    ("unspecified", IPv4Address("0.0.0.0")),
    ("of a group", IPv4Address("224.0.0.1")),
    ("broadcast", IPv4Address("255.255.255.255")),
    ("reserved", IPv4Address("240.0.0.1")),
    ("private", IPv4Address("10.0.0.1")),
):
    sources.drop(f"source {name}", _udp(sources, source), Reason.SOURCE_V4)
sources.drop(
    "a VM without IPv4",
    four(p.UDP, p.udp(HERE_V4, OUTSIDE_V4, 1, 2, sources.data()), at="wide"),
    Reason.SOURCE_V4,
    at="wide",
)

places = Cases("IPv4 destinations")
for name, to in (
    ("the loopback", "127.0.0.1"),
    ("a metadata service", "169.254.169.254"),
    ("this network", "0.0.0.1"),
    ("a private network", "10.1.2.3"),
    ("another private network", "172.16.0.1"),
    ("one more private network", "192.168.1.1"),
    ("a carrier's network", "100.64.0.1"),
    ("benchmarks", "198.18.0.1"),
    ("a group", "224.0.0.251"),
    ("a reserved address", "240.0.0.1"),
    ("everybody", "255.255.255.255"),
    ("the operator's own network", "203.0.113.129"),
):
    frame = _udp(places, to=IPv4Address(to))
    places.drop(f"to {name}", frame, Reason.DESTINATION)
places.drop("a broadcast frame", _udp(places, link="ff:ff:ff:ff:ff:ff"), Reason.DESTINATION)
places.drop(
    "IGMP",
    four(2, b"\x16\0\0\0" + places.data(), to=IPv4Address("224.0.0.22"), link="01:00:5e:00:00:16"),
    Reason.DESTINATION,
)

packets = Cases("IPv4 packets")
for name, option in (
    ("a loose source route", b"\x83\x07\x04" + _BOB.packed + b"\0"),
    ("a strict source route", b"\x89\x07\x04" + _BOB.packed + b"\0"),
    ("a record of the route", b"\x07\x07\x04" + bytes(5)),
    ("a router alert", b"\x94\x04\0\0"),
    ("a timestamp", b"\x44\x08\x05\0" + bytes(4)),
    ("nothing but padding", b"\x01\x01\x01\0"),
):
    packets.drop(f"option: {name}", _udp(packets, option=option), Reason.OPTIONS_V4)
packets.drop("a header of 16 octets", _udp(packets, words=4), None)
packets.drop("longer than the frame", _udp(packets, length=1400), None)
packets.drop("shorter than its header", _udp(packets, length=10), None)
for name, number in (("IPv4 in IPv4", p.IPIP), ("IPv6 in IPv4", p.IPV6), ("GRE", p.GRE)):
    packets.drop(name, four(number, bytes(40) + packets.data()), Reason.TUNNEL)
    packets.drop(
        f"{name} to the gateway",
        four(number, bytes(40) + packets.data(), to=GATEWAY_IPV4),
        Reason.LINK_PROTOCOL,
    )
for name, number in (("OSPF", 89), ("VRRP", 112), ("L2TP", 115), ("PIM", 103), ("a reserved", 255)):
    packets.drop(f"{name} protocol", four(number, bytes(40) + packets.data()), Reason.PROTOCOL)
for name, kind, reason in (
    ("a redirect", 5, Reason.REDIRECT),
    ("a router advertisement", 9, Reason.ICMP_TYPE),
    ("a router solicitation", 10, Reason.ICMP_TYPE),
    ("a source quench", 4, Reason.ICMP_TYPE),
    ("a timestamp request", 13, Reason.ICMP_TYPE),
    ("an address mask request", 17, Reason.ICMP_TYPE),
):
    body = _FRIEND.packed + bytes(20) + packets.data()
    packets.drop(f"ICMP: {name}", four(p.ICMP4, p.icmp4(kind, body), to=_FRIEND), reason)
packets.drop(
    "ICMP: a redirect to the gateway",
    four(p.ICMP4, p.icmp4(5, _BOB.packed + bytes(20) + packets.data()), to=GATEWAY_IPV4),
    Reason.LINK_PROTOCOL,
)
packets.drop(
    "a fragment to the gateway",
    four(
        p.ICMP4,
        p.icmp4(8, p.echo(1, packets.data())),
        to=GATEWAY_IPV4,
        fragment_field=0x2000,
    ),
    Reason.LINK_HEADER,
)
packets.drop("a hundred without a hop left", _udp(packets, ttl=1), Reason.CONTROL_RATE, times=100)

arp = Cases("ARP")
_ME, _GATEWAY = (_MAC, HERE_V4), ("00:00:00:00:00:00", GATEWAY_IPV4)
_ALL = "ff:ff:ff:ff:ff:ff"
for name, operation, sender, target in (
    ("the gateway's address announced", 1, (_MAC, GATEWAY_IPV4), (_MAC, GATEWAY_IPV4)),
    ("another VM's address announced", 1, (_MAC, _BOB), (_MAC, _BOB)),
    ("another VM's address in a question", 1, (_MAC, _FRIEND), _GATEWAY),
    ("another VM's address in an answer", 2, (_MAC, _FRIEND), (GATEWAY_MAC, GATEWAY_IPV4)),
    ("another VM's MAC in a question", 1, (_FRIEND_MAC, HERE_V4), _GATEWAY),
    ("the gateway's MAC in an answer", 2, (GATEWAY_MAC, HERE_V4), (GATEWAY_MAC, GATEWAY_IPV4)),
    ("a question about another VM", 1, _ME, ("00:00:00:00:00:00", _BOB)),
    ("a question about the world", 1, _ME, ("00:00:00:00:00:00", OUTSIDE_V4)),
    ("a probe for another VM's address", 1, (_MAC, IPv4Address("0.0.0.0")), (_MAC, _BOB)),
):
    packet = p.arp(operation, sender, target) + arp.data()
    arp.drop(name, p.ether(_MAC, _ALL, p.ETH_ARP, packet), Reason.ARP)
for name, packet in (
    ("addresses of six octets", p.arp(1, _ME, _GATEWAY, address_bytes=6)),
    ("another kind of link", b"\0\x06" + p.arp(1, _ME, _GATEWAY)[2:]),
    ("another protocol", p.arp(1, _ME, _GATEWAY)[:2] + b"\x86\xdd" + p.arp(1, _ME, _GATEWAY)[4:]),
    ("half a packet", p.arp(1, _ME, _GATEWAY)[:14]),
):
    arp.drop(name, p.ether(_MAC, _ALL, p.ETH_ARP, packet), Reason.ARP)
arp.drop(
    "from a VM without IPv4",
    p.ether(VMS["wide"].mac, _ALL, p.ETH_ARP, p.arp(1, (VMS["wide"].mac, _FRIEND), _GATEWAY)),
    Reason.ARP,
    at="wide",
)
arp.drop(
    "a hundred questions at once",
    p.ether(_MAC, _ALL, p.ETH_ARP, p.arp(1, _ME, _GATEWAY)),
    Reason.CONTROL_RATE,
    times=100,
)

legitimate = Cases("IPv4 that passes")
legitimate.passes("UDP", _udp(legitimate), "uplink")
legitimate.passes(
    "TCP", four(p.TCP, p.tcp(HERE_V4, OUTSIDE_V4, 1, 80, p.SYN, legitimate.data())), "uplink"
)
legitimate.passes(
    "a ping of the world", four(p.ICMP4, p.icmp4(8, p.echo(1, legitimate.data()))), "uplink"
)
legitimate.passes(
    "a ping of the gateway",
    four(p.ICMP4, p.icmp4(8, p.echo(1, legitimate.data())), to=GATEWAY_IPV4),
    "host",
    "alice 1",
)
legitimate.passes("to the same customer's VM", _udp(legitimate, to=_FRIEND), "alice 2")
legitimate.passes(
    "a question to the host's name server, and its answer",
    _udp(legitimate, to=GATEWAY_IPV4, ports=(4000, 53)),
    "host",
    "alice 1",
)
legitimate.passes("a first fragment", _udp(legitimate, fragment_field=0x2000), "uplink")
legitimate.passes(
    "a later fragment", four(p.UDP, legitimate.data(), fragment_field=0x0010), "uplink"
)
legitimate.passes(
    "a later fragment that looks like DHCP",
    four(p.UDP, b"\0\x43\0\x44" + legitimate.data(), fragment_field=0x0010),
    "uplink",
)
legitimate.passes(
    "that a packet was too big",
    four(p.ICMP4, p.icmp4(3, struct.pack(">HH", 0, 1400) + legitimate.data(), code=4)),
    "uplink",
)
legitimate.passes(
    "an ARP question about the gateway",
    p.ether(_MAC, _ALL, p.ETH_ARP, p.arp(1, _ME, _GATEWAY)),
    "host",
    "alice 1",
    look_for=p.mac(GATEWAY_MAC) + GATEWAY_IPV4.packed,
)
legitimate.passes(
    "an ARP probe for its own address",
    p.ether(
        _MAC,
        _ALL,
        p.ETH_ARP,
        p.arp(1, (_MAC, IPv4Address("0.0.0.0")), ("00:00:00:00:00:00", HERE_V4)),
    ),
    "host",
)

CASES = [*sources.all, *places.all, *packets.all, *arp.all, *legitimate.all]
