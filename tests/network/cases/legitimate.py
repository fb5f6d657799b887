"""What an honest guest sends and gets, over IPv6: all of it has to pass."""

from __future__ import annotations

import struct
from ipaddress import IPv6Address

from tests.network.cases.base import (
    ALL_NODES,
    ALL_ROUTERS,
    HERE,
    LINK,
    ROUTER,
    VMS,
    Cases,
    address,
    datagram,
    from_outside,
    message,
    segment,
    six,
)
from tests.support import packets as p
from tests.support.fabric import GATEWAY, GATEWAY_MAC, OUTSIDE

_MAC = VMS["alice 1"].mac
_FRIEND = address("alice 2")
_SOLICITED_ROUTER = IPv6Address("ff02::1:ff00:1")

link = Cases("The link that passes")
_ANSWER = b"\x02\x01" + p.mac(GATEWAY_MAC)
link.passes(
    "who has the gateway's address",
    message(p.NS, p.neighbor(ROUTER, _MAC), to=_SOLICITED_ROUTER),
    "host",
    "alice 1",
    look_for=_ANSWER,
)
link.passes(
    "the same from its global address",
    message(p.NS, p.neighbor(ROUTER, _MAC), source=HERE, to=_SOLICITED_ROUTER),
    "host",
    "alice 1",
    look_for=_ANSWER,
)
link.passes(
    "whether the gateway is still there",
    message(p.NS, p.neighbor(ROUTER, _MAC), to=ROUTER),
    "host",
    "alice 1",
    look_for=ROUTER.packed,
)
for name, target in (("link-local", LINK), ("global", HERE)):
    group = IPv6Address(int(IPv6Address("ff02::1:ff00:0")) | int(target) & 0xFFFFFF)
    link.passes(
        f"whether its {name} address is free",
        message(p.NS, p.neighbor(target, None), source=IPv6Address("::"), to=group),
        *(["host"] if target == LINK else []),
        unheard=target == HERE,
    )
link.passes(
    "whether an address of its /64 is free",
    message(
        p.NS,
        p.neighbor(IPv6Address("2001:db8:1:6::77"), None),
        at="wide",
        source=IPv6Address("::"),
        to=IPv6Address("ff02::1:ff00:77"),
    ),
    at="wide",
    unheard=True,
)
link.passes(
    "an answer about its own address",
    message(p.NA, p.neighbor(HERE, _MAC, flags=0x60, option=2), to=ROUTER),
    "host",
)
link.passes(
    "its own address announced",
    message(p.NA, p.neighbor(LINK, _MAC, flags=0x20, option=2), to=ALL_NODES),
    "host",
)
link.passes(
    "a router solicitation",
    message(p.RS, bytes(4) + b"\x01\x01" + p.mac(_MAC), to=ALL_ROUTERS),
    "host",
)
link.passes(
    "one from nobody", message(p.RS, bytes(4), source=IPv6Address("::"), to=ALL_ROUTERS), "host"
)
link.passes(
    "a ping of the gateway",
    message(p.ECHO, p.echo(1, link.data()), source=HERE, to=GATEWAY, hops=64),
    "host",
    "alice 1",
)
link.passes(
    "a ping of the gateway's link-local address",
    message(p.ECHO, p.echo(1, link.data()), to=ROUTER, hops=64),
    "host",
    "alice 1",
)
link.passes(
    "a question to the host's name server, and its answer",
    datagram(link.data(), to=GATEWAY, ports=(4000, 53)),
    "host",
    "alice 1",
)

routed = Cases("Routed that passes")
routed.passes("UDP", datagram(routed.data()), "uplink")
routed.talk(
    "a TCP connection",
    routed.seen(segment(p.SYN, routed.data()), "uplink"),
    routed.seen(
        from_outside(
            p.ip6(
                OUTSIDE,
                HERE,
                p.TCP,
                p.tcp(OUTSIDE, HERE, 80, 4000, p.SYN | p.ACK, routed.data()),
            )
        ),
        "alice 1",
        at="uplink",
    ),
    routed.seen(segment(p.ACK | p.PSH, routed.data()), "uplink"),
    routed.seen(segment(p.FIN | p.ACK, routed.data()), "uplink"),
)
routed.talk(
    "a name server in the world",
    routed.seen(datagram(routed.data(), ports=(4000, 53)), "uplink"),
    routed.seen(
        from_outside(p.ip6(OUTSIDE, HERE, p.UDP, p.udp(OUTSIDE, HERE, 53, 4000, routed.data()))),
        "alice 1",
        at="uplink",
    ),
)
for name, protocol in (("ESP", p.ESP), ("SCTP", p.SCTP)):
    routed.passes(name, six(protocol, bytes(16) + routed.data()), "uplink")
for name, kind in (
    ("a ping", p.ECHO),
    ("the answer to one", p.ECHO_REPLY),
    ("that a packet was too big", p.TOO_BIG),
    ("that a port is closed", p.UNREACHABLE),
    ("that a header was wrong", p.PROBLEM),
    ("that there was no hop left", p.TIME_EXCEEDED),
):
    frame = message(kind, p.echo(1, routed.data()), source=HERE, to=OUTSIDE, hops=64)
    routed.passes(f"ICMPv6: {name}", frame, "uplink")
routed.passes(
    "from outside, that a packet was too big",
    from_outside(
        p.ip6(
            OUTSIDE,
            HERE,
            p.ICMP6,
            p.icmp6(OUTSIDE, HERE, p.TOO_BIG, struct.pack(">I", 1400) + routed.data()),
        )
    ),
    "alice 1",
    at="uplink",
)
routed.passes(
    "a packet too big for the uplink is answered",
    datagram(routed.data() * 200),
    "alice 1",
    look_for=struct.pack(">BB", p.TOO_BIG, 0),
)
for name, headers in (
    ("destination options", [p.options(p.DESTINATION)]),
    ("a mobile's routing header", [p.routing(2, HERE)]),
    ("both", [p.options(p.DESTINATION), p.routing(2, HERE)]),
    ("a first fragment", [p.fragment(0, more=True)]),
    ("a first fragment behind options", [p.options(p.DESTINATION), p.fragment(0, more=True)]),
    ("options in a first fragment", [p.fragment(0, more=True), p.options(p.DESTINATION)]),
):
    routed.passes(f"with {name}", datagram(routed.data(), headers), "uplink")
_big = p.udp(HERE, _FRIEND, 4000, 4001, routed.data() * 300)
routed.talk(
    "a datagram in two fragments, to the same customer's VM",
    routed.seen(six(p.UDP, _big[:1232], [p.fragment(0, more=True)], to=_FRIEND), "alice 2"),
    routed.seen(six(p.UDP, _big[1232:], [p.fragment(154, more=False)], to=_FRIEND), "alice 2"),
)
routed.talk(
    "a ping in two fragments, from outside",
    *(
        routed.seen(
            from_outside(p.ip6(OUTSIDE, HERE, p.ICMP6, part, [p.fragment(offset, more=more)])),
            "alice 1",
            at="uplink",
        )
        for offset, more, part in (
            (0, True, p.icmp6(OUTSIDE, HERE, p.ECHO, p.echo(1, routed.data() * 7))),
            (8, False, routed.data()),
        )
    ),
)
_segment = p.tcp(HERE, OUTSIDE, 4000, 80, p.ACK, routed.data() * 20)
routed.passes(
    "a first fragment of TCP", six(p.TCP, _segment[:64], [p.fragment(0, more=True)]), "uplink"
)
routed.passes(
    "from any address of its /64",
    datagram(routed.data(), at="wide", source=IPv6Address("2001:db8:1:6::beef")),
    "uplink",
    at="wide",
)
routed.passes("the last hop but one is enough", datagram(routed.data(), hops=2), "uplink")

CASES = [*link.all, *routed.all]
