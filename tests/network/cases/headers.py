"""Extension headers, fragments, tunnels and protocols in IPv6 that is to be routed."""

from __future__ import annotations

import struct

from tests.network.cases.base import HERE, Cases, address, datagram, message, segment, six
from tests.support import packets as p
from tests.support.fabric import GATEWAY, OUTSIDE
from vm_agent.network.reasons import Reason

_FRIEND, _BOB = address("alice 2"), address("bob")
_OPTIONS, _HBH = p.options(p.DESTINATION), p.options(p.HOP_BY_HOP)
_RT2 = p.routing(2, _FRIEND)

chains = Cases("Extension headers")
for name, headers, reason in (
    ("hop-by-hop options", [_HBH], Reason.HOP_BY_HOP),
    ("a router alert", [p.options(0, b"\x05\x02\0\0\x01\0")], Reason.HOP_BY_HOP),
    ("a jumbo payload", [p.options(0, b"\xc2\x04\0\x01\0\0")], Reason.HOP_BY_HOP),
    ("an unknown option to be answered", [p.options(0, b"\xa0\x04" + bytes(4))], Reason.HOP_BY_HOP),
    (
        "2000 octets of options",
        [p.options(0, b"\x01\x04\0\0\0\0" + b"\0" * 1400)],
        Reason.HOP_BY_HOP,
    ),
    ("a hop-by-hop header in second place", [_OPTIONS, _HBH], Reason.HOP_BY_HOP),
    ("a routing header of type 0", [p.routing(0, _BOB)], Reason.ROUTING_HEADER),
    ("type 0 with nothing left", [p.routing(0, _BOB, left=0)], Reason.ROUTING_HEADER),
    ("type 0 through ten", [p.routing(0, *[_BOB, HERE] * 5, left=10)], Reason.ROUTING_HEADER),
    ("a routing header of type 1", [p.routing(1, _BOB)], Reason.ROUTING_HEADER),
    ("a routing header of type 3", [p.routing(3, _BOB)], Reason.ROUTING_HEADER),
    ("a segment routing header", [p.routing(4, _BOB)], Reason.ROUTING_HEADER),
    ("an experimental routing header", [p.routing(253, _BOB)], Reason.ROUTING_HEADER),
    ("type 0 behind options", [_OPTIONS, p.routing(0, _BOB)], Reason.ROUTING_HEADER),
    ("type 0 behind type 2", [_RT2, p.routing(0, _BOB)], Reason.HEADER_CHAIN),
    ("type 0 behind type 2 and options", [_RT2, _OPTIONS, p.routing(0, _BOB)], Reason.HEADER_CHAIN),
    ("type 0 in a fragment", [p.fragment(0, more=True), p.routing(0, _BOB)], Reason.ROUTING_HEADER),
    (
        "type 0 behind options in a fragment",
        [p.fragment(0, more=True), _OPTIONS, p.routing(0, _BOB)],
        Reason.ROUTING_HEADER,
    ),
    (
        "type 0 in a fragment behind type 2",
        [_RT2, p.fragment(0, more=True), p.routing(0, _BOB)],
        Reason.HEADER_CHAIN,
    ),
    ("options twice", [_OPTIONS, _OPTIONS], Reason.HEADER_CHAIN),
    ("options forty times", [_OPTIONS] * 40, Reason.HEADER_CHAIN),
    ("an authentication header", [p.Header(p.AH, bytes([2]) + bytes(14))], Reason.PROTOCOL),
    ("a mobility header", [p.Header(p.MOBILITY, bytes(7))], Reason.PROTOCOL),
    ("host identity", [p.Header(139, bytes(7))], Reason.PROTOCOL),
    ("shim6", [p.Header(140, bytes(7))], Reason.PROTOCOL),
    ("an experimental header", [p.Header(253, bytes(7))], Reason.PROTOCOL),
):
    chains.drop(name, datagram(chains.data(), headers), reason)
for name, headers in (
    ("type 0 through the gateway", [p.routing(0, _BOB)]),
    ("type 2 through the gateway", [p.routing(2, _BOB)]),
    ("a segment routing header through the gateway", [p.routing(4, _BOB)]),
    ("destination options to the gateway", [_OPTIONS]),
):
    chains.drop(name, datagram(chains.data(), headers, to=GATEWAY), Reason.LINK_HEADER)
chains.drop(
    "hop-by-hop options to the gateway",
    message(p.ECHO, p.echo(1, chains.data()), [_HBH], source=HERE, to=GATEWAY),
    Reason.LINK_HEADER,
)

pieces = Cases("Fragments")
_FIRST, _ATOMIC = p.fragment(0, more=True), p.fragment(0, more=False)
pieces.drop("an atomic fragment", datagram(pieces.data(), [_ATOMIC]), Reason.ATOMIC_FRAGMENT)
pieces.drop(
    "an atomic fragment behind options",
    datagram(pieces.data(), [_OPTIONS, _ATOMIC]),
    Reason.ATOMIC_FRAGMENT,
)
for name, protocol, payload in (
    ("a fragment with half a TCP header", p.TCP, pieces.data()),
    ("a fragment with all of a TCP header but one octet", p.TCP, bytes(11) + pieces.data()),
    ("a fragment with half a UDP header", p.UDP, b"FRAG"),
    ("a fragment with nothing in it", p.UDP, b""),
    ("a fragment with half an ICMPv6 header", p.ICMP6, b"\x86\0\0\0"),
):
    pieces.drop(name, six(protocol, payload, [_FIRST]), Reason.TINY_FRAGMENT)
pieces.drop(
    "a fragment that ends in its options",
    six(p.DESTINATION, bytes([p.UDP, 0]) + b"\x01\x04FRAG", [_FIRST]),
    Reason.TINY_FRAGMENT,
)
pieces.drop(
    "a fragment in a fragment",
    datagram(pieces.data(), [_FIRST, p.fragment(0, more=True, number=8)]),
    Reason.HEADER_CHAIN,
)
pieces.drop(
    "a later fragment in a fragment",
    datagram(pieces.data(), [_FIRST, p.fragment(9, more=True, number=8)]),
    Reason.HEADER_CHAIN,
)
pieces.drop(
    "a later fragment that says a header of hop-by-hop options comes",
    six(p.HOP_BY_HOP, pieces.data(), [p.fragment(9, more=False)]),
    Reason.HEADER_CHAIN,
)
pieces.drop(
    "a later fragment of a tunnel",
    six(p.IPV6, pieces.data(), [p.fragment(9, more=False)]),
    Reason.HEADER_CHAIN,
)
pieces.drop(
    "a fragment of a ping of the gateway",
    message(p.ECHO, p.echo(1, pieces.data()), [_FIRST], source=HERE, to=GATEWAY),
    Reason.LINK_HEADER,
)
pieces.drop(
    "a later fragment to the gateway",
    six(p.UDP, pieces.data(), [p.fragment(2, more=False)], to=GATEWAY),
    Reason.LINK_HEADER,
)
pieces.drop(
    "a fragment with neighbour discovery to be routed",
    message(p.NS, p.neighbor(_FRIEND, None) + pieces.data(), [_FIRST], source=HERE, to=_FRIEND),
    Reason.ICMP_TYPE,
)
pieces.drop(
    "a fragment to another customer", datagram(pieces.data(), [_FIRST], to=_BOB), Reason.TENANT
)
pieces.drop(
    "a later fragment to another customer",
    six(p.UDP, pieces.data(), [p.fragment(9, more=False)], to=_BOB),
    Reason.TENANT,
)

tunnels = Cases("Tunnels and protocols")


def _inside() -> bytes:
    return p.ip6(_BOB, OUTSIDE, p.UDP, p.udp(_BOB, OUTSIDE, 1, 2, tunnels.data()))


_four = bytes.fromhex("4500001c0000000040110000c0000203cb007163")
for name, protocol, payload in (
    ("IPv6 in IPv6", p.IPV6, _inside()),
    ("IPv4 in IPv6", p.IPIP, _four + tunnels.data()),
    ("GRE", p.GRE, b"\0\0\x86\xdd" + _inside()),
    ("MPLS in IPv6", 137, b"\0\0\x21\x40" + _inside()),
):
    tunnels.drop(f"{name}, another customer's source inside", six(protocol, payload), Reason.TUNNEL)
    tunnels.drop(
        f"{name}, to the gateway", six(protocol, payload, to=GATEWAY), Reason.LINK_PROTOCOL
    )
for name, headers in (("behind options", [_OPTIONS]), ("in a fragment", [_FIRST])):
    tunnels.drop(f"IPv6 in IPv6, {name}", six(p.IPV6, _inside(), headers), Reason.HEADER_CHAIN)
for name, number in (
    ("no next header", p.NO_NEXT),
    ("Ethernet in IPv6", 143),
    ("L2TP", 115),
    ("OSPF", 89),
    ("PIM", 103),
    ("VRRP", 112),
    ("RSVP", 46),
    ("UDP-Lite", 136),
    ("DCCP", 33),
    ("a reserved protocol", 255),
):
    tunnels.drop(name, six(number, bytes(32) + tunnels.data()), Reason.PROTOCOL)
for name, kind in (
    ("a node information query", 139),
    ("a renumbering command", 138),
    ("a listener report", p.MLD2_REPORT),
    ("a private experiment", 200),
    ("a reserved error", 5),
    ("an extended echo", 160),
):
    frame = message(kind, bytes(20) + tunnels.data(), source=HERE, to=OUTSIDE, hops=64)
    tunnels.drop(f"ICMPv6: {name}", frame, Reason.ICMP_TYPE)

lengths = Cases("Lengths and hops")
lengths.drop(
    "a payload longer than the frame",
    six(p.UDP, p.udp(HERE, OUTSIDE, 1, 2, lengths.data()), length=1000),
    None,
)
lengths.drop("a payload of no octets that is there", six(p.UDP, b"", length=0)[:-1], None)
lengths.drop(
    "version 5",
    (lambda f: f[:14] + b"\x50" + f[15:])(datagram(lengths.data())),
    None,
)
lengths.passes(
    "a datagram without a hop left is answered, and goes no further",
    datagram(lengths.data(), hops=1),
    "alice 1",
    look_for=struct.pack(">B", p.TIME_EXCEEDED) + b"\0",
)
lengths.drop(
    "a hundred without a hop left", datagram(lengths.data(), hops=1), Reason.CONTROL_RATE, times=100
)
lengths.drop(
    "a segment to the gateway without a hop left",
    segment(p.SYN, lengths.data(), to=GATEWAY, ports=(4000, 22)),
    Reason.LINK_PROTOCOL,
)

CASES = [*chains.all, *pieces.all, *tunnels.all, *lengths.all]
