"""Other customers, the host itself, quarantine, and taps without rules."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from tests.network.cases.base import (
    HERE,
    VMS,
    Cases,
    address,
    datagram,
    four,
    from_outside,
    message,
    segment,
    six,
)
from tests.support import packets as p
from tests.support.fabric import GATEWAY, OUTSIDE
from vm_agent.network.reasons import Reason

_BOB, _CAROL = address("bob"), address("carol")

others = Cases("Other customers")
others.drop("a datagram", datagram(others.data(), to=_BOB), Reason.TENANT)
others.drop("the beginning of a connection", segment(p.SYN, others.data(), to=_BOB), Reason.TENANT)
others.drop("the middle of a connection", segment(p.ACK, others.data(), to=_BOB), Reason.TENANT)
others.drop(
    "a ping",
    message(p.ECHO, p.echo(1, others.data()), source=HERE, to=_BOB, hops=64),
    Reason.TENANT,
)
others.drop(
    "that a packet was too big",
    message(p.TOO_BIG, bytes(4) + others.data(), source=HERE, to=_BOB, hops=64),
    Reason.TENANT,
)
others.drop("ESP", six(p.ESP, bytes(8) + others.data(), to=_BOB), Reason.TENANT)
others.drop("SCTP", six(p.SCTP, bytes(8) + others.data(), to=_BOB), Reason.TENANT)
others.drop(
    "behind options",
    datagram(others.data(), [p.options(p.DESTINATION)], to=_BOB),
    Reason.TENANT,
)
others.drop(
    "behind a mobile's routing header",
    datagram(others.data(), [p.routing(2, HERE)], to=_BOB),
    Reason.TENANT,
)
others.drop(
    "to the link-local address of another customer's VM",
    datagram(others.data(), source=VMS["alice 1"].link_local, to=VMS["bob"].link_local),
    Reason.LINK_PROTOCOL,
)
others.drop(
    "over IPv4",
    four(
        p.UDP,
        p.udp(IPv4Address("192.0.2.1"), IPv4Address("192.0.2.3"), 1, 2, others.data()),
        to=IPv4Address("192.0.2.3"),
    ),
    Reason.TENANT,
)
for name, at, to in (
    ("from the other side", "bob", HERE),
    ("to a peer's peer", "bob", _CAROL),
    ("from a peer's peer", "carol", _BOB),
    ("to a closed VM", "bob", address("closed")),
    ("from a peer that only the other side named", "carol", address("wide")),
):
    others.drop(name, datagram(others.data(), at=at, to=to), Reason.TENANT, at=at)
others.passes("to a peer", datagram(others.data(), to=_CAROL), "carol")
others.passes("from a peer", datagram(others.data(), at="carol", to=HERE), "alice 1", at="carol")
others.passes(
    "to the same customer's closed VM",
    segment(p.SYN, others.data(), to=address("closed")),
    "closed",
)
others.passes(
    "to the same customer's VM", datagram(others.data(), to=address("alice 2")), "alice 2"
)

host = Cases("The host")
_UP, _UP_LINK = IPv6Address("2001:db8:ffff::1"), IPv6Address("fe80::1:1")
_ROUTER = IPv6Address("fe80::1")
for name, to in (
    ("its address", GATEWAY),
    ("its link-local address", _ROUTER),
    ("its uplink's address", _UP),
    ("its uplink's link-local address", _UP_LINK),
):
    for what, ports in (("SSH", (4000, 22)), ("the agent", (4000, 8080)), ("NATS", (4000, 4222))):
        frame = segment(p.SYN, host.data(), to=to, ports=ports)
        host.drop(f"{what} at {name}", frame, Reason.LINK_PROTOCOL)
host.drop(
    "a name server where there is none",
    datagram(host.data(), to=_ROUTER, ports=(4000, 53)),
    Reason.LINK_PROTOCOL,
)
host.drop(
    "the name server over TCP",
    segment(p.SYN, host.data(), to=GATEWAY, ports=(4000, 53)),
    Reason.LINK_PROTOCOL,
)
for name, ports in (("NTP", (123, 123)), ("SNMP", (4000, 161)), ("VXLAN", (4000, 4789))):
    host.drop(name, datagram(host.data(), to=GATEWAY, ports=ports), Reason.LINK_PROTOCOL)
host.drop("Geneve", datagram(host.data(), to=GATEWAY, ports=(4000, 6081)), Reason.LINK_PROTOCOL)
host.drop("ESP", six(p.ESP, bytes(8) + host.data(), to=GATEWAY), Reason.LINK_PROTOCOL)
host.drop("SCTP", six(p.SCTP, bytes(8) + host.data(), to=GATEWAY), Reason.LINK_PROTOCOL)
for name, kind in (
    ("that a packet was too big", p.TOO_BIG),
    ("that a port is closed", p.UNREACHABLE),
    ("a node information query", 139),
):
    frame = message(kind, bytes(4) + host.data(), source=HERE, to=GATEWAY, hops=64)
    host.drop(f"ICMPv6 {name}", frame, Reason.LINK_PROTOCOL)
host.drop(
    "a thousand questions at once",
    datagram(host.data(), to=GATEWAY, ports=(4000, 53)),
    Reason.CONTROL_RATE,
    times=1000,
)
host.drop(
    "a hundred pings at once",
    message(p.ECHO, p.echo(1, host.data()), source=HERE, to=GATEWAY, hops=64),
    Reason.CONTROL_RATE,
    times=100,
)
_v4 = IPv4Address("203.0.113.1")
host.drop(
    "its uplink's IPv4 address",
    four(p.UDP, p.udp(IPv4Address("192.0.2.1"), _v4, 1, 2, host.data()), to=_v4),
    Reason.HOST,
)
host.drop(
    "SSH from outside",
    from_outside(
        p.ip6(OUTSIDE, GATEWAY, p.TCP, p.tcp(OUTSIDE, GATEWAY, 4000, 22, p.SYN, host.data()))
    ),
    Reason.HOST,
    at="uplink",
)

cut = Cases("Quarantine")
_CUT = address("cut")
cut.drop("to the world", datagram(cut.data(), at="cut"), Reason.QUARANTINE, at="cut")
cut.drop(
    "to the same customer's VM",
    datagram(cut.data(), at="cut", to=_BOB),
    Reason.QUARANTINE,
    at="cut",
)
cut.drop(
    "to the gateway",
    message(p.ECHO, p.echo(1, cut.data()), at="cut", source=_CUT, to=GATEWAY, hops=64),
    Reason.QUARANTINE,
    at="cut",
)
cut.drop(
    "a question about the gateway",
    message(p.NS, p.neighbor(_ROUTER, VMS["cut"].mac), at="cut", to=_ROUTER),
    Reason.QUARANTINE,
    at="cut",
)
cut.drop(
    "from the world",
    from_outside(p.ip6(OUTSIDE, _CUT, p.UDP, p.udp(OUTSIDE, _CUT, 1, 2, cut.data()))),
    Reason.QUARANTINE,
    at="uplink",
)
cut.drop(
    "from the same customer's VM",
    datagram(cut.data(), at="bob", to=_CUT),
    Reason.QUARANTINE,
    at="bob",
)

bare = Cases("Taps without rules")
_BARE = address("bare")
bare.drop("to the world", datagram(bare.data(), at="bare"), Reason.UNATTACHED, at="bare")
bare.drop(
    "to the same customer's VM",
    datagram(bare.data(), at="bare", to=_BOB),
    Reason.UNATTACHED,
    at="bare",
)
bare.drop(
    "to the gateway",
    message(p.ECHO, p.echo(1, bare.data()), at="bare", source=_BARE, to=GATEWAY, hops=64),
    Reason.UNATTACHED,
    at="bare",
)
bare.drop(
    "from the world",
    from_outside(p.ip6(OUTSIDE, _BARE, p.UDP, p.udp(OUTSIDE, _BARE, 1, 2, bare.data()))),
    Reason.UNROUTED,
    at="uplink",
)
bare.drop(
    "from the same customer's VM",
    datagram(bare.data(), at="bob", to=_BARE),
    Reason.TENANT,
    at="bob",
)

CASES = [*others.all, *host.all, *cut.all, *bare.all]
