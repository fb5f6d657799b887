"""IPv6 from whom, and to where."""

from __future__ import annotations

from ipaddress import IPv6Address

from tests.network.cases.base import (
    ALL_NODES,
    HERE,
    LINK,
    ROUTER,
    Cases,
    address,
    datagram,
    message,
)
from tests.support import packets as p
from tests.support.fabric import GATEWAY
from vm_agent.network.reasons import Reason

sources = Cases("IPv6 sources")
for name, source in (
    ("of the same customer's VM", address("alice 2")),
    ("of another customer's VM", address("bob")),
    ("next to its own", IPv6Address(int(HERE) + 1)),
    ("of nobody on this host", IPv6Address("2001:db8:1::dead")),
    ("of somebody elsewhere", IPv6Address("2001:db8:5::1")),
    ("of the gateway", GATEWAY),
    ("of the gateway, link-local", ROUTER),
    ("of another VM, link-local", IPv6Address(int(LINK) + 1)),
    ("mapped IPv4", IPv6Address("::ffff:192.0.2.1")),
    ("compatible IPv4", IPv6Address("::192.0.2.1")),
    ("6to4 of its own IPv4", IPv6Address("2002:c000:201::1")),
    ("unique local", IPv6Address("fd00::1")),
    ("site-local", IPv6Address("fec0::1")),
):
    sources.drop(f"source {name}", datagram(sources.data(), source=source), Reason.SOURCE)
for name, source in (("of the loopback", IPv6Address("::1")), ("of a group", ALL_NODES)):
    sources.drop(f"source {name}", datagram(sources.data(), source=source), None)
sources.drop(
    "source unspecified, a datagram",
    datagram(sources.data(), source=IPv6Address("::")),
    Reason.UNSPECIFIED,
)
sources.drop(
    "source outside its /64",
    datagram(sources.data(), at="wide", source=IPv6Address("2001:db8:1:7::1")),
    Reason.SOURCE,
    at="wide",
)
sources.drop(
    "source of another customer's VM, to the host's name server",
    datagram(sources.data(), source=address("bob"), to=GATEWAY, ports=(4000, 53)),
    Reason.SOURCE,
)
sources.drop(
    "a ping of the gateway in another customer's name",
    message(p.ECHO, p.echo(1, sources.data()), source=address("bob"), to=GATEWAY, hops=64),
    Reason.SOURCE,
)

places = Cases("IPv6 destinations")
for name, to in (
    ("unique local", IPv6Address("fd00::53")),
    ("site-local", IPv6Address("fec0::1")),
    ("mapped IPv4", IPv6Address("::ffff:203.0.113.2")),
    ("compatible IPv4", IPv6Address("::203.0.113.2")),
    ("the unspecified", IPv6Address("::")),
    ("the discard prefix", IPv6Address("100::1")),
    ("Teredo", IPv6Address("2001::1")),
    ("6to4", IPv6Address("2002:a00:1::1")),
    ("segment routing", IPv6Address("5f00::1")),
    ("the operator's own network", IPv6Address("2001:db8:ffff:aaaa::1")),
):
    places.drop(f"to {name}", datagram(places.data(), to=to), Reason.DESTINATION)
places.drop("to the loopback", datagram(places.data(), to=IPv6Address("::1")), None)
places.drop(
    "to somebody elsewhere, from link-local",
    datagram(places.data(), source=LINK),
    Reason.DESTINATION,
)
for name, group, ports in (
    ("the global group of all VMs' choice", "ff0e::1234", (4000, 4001)),
    ("all nodes of the site", "ff05::2", (4000, 4001)),
    ("mDNS", "ff02::fb", (5353, 5353)),
    ("LLMNR", "ff02::1:3", (5355, 5355)),
    ("SSDP", "ff02::c", (1900, 1900)),
    ("all nodes", "ff02::1", (4000, 4001)),
):
    places.drop(
        f"to a group: {name}",
        datagram(places.data(), to=IPv6Address(group), ports=ports),
        Reason.LINK_PROTOCOL,
    )
places.drop(
    "to a group: all nodes of the interface",
    datagram(places.data(), to=IPv6Address("ff01::1")),
    None,
)
places.drop(
    "a ping of all nodes",
    message(p.ECHO, p.echo(1, places.data()), hops=64),
    Reason.LINK_PROTOCOL,
)

CASES = [*sources.all, *places.all]
