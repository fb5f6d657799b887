"""What a link's protocols are abused for: routers, neighbours, listeners, address servers."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

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
    four,
    message,
    six,
)
from tests.support import packets as p
from tests.support.fabric import GATEWAY_MAC
from vm_agent.network.reasons import Reason

_MAC = VMS["alice 1"].mac
_FRIEND, _FRIEND_LINK = address("alice 2"), VMS["alice 2"].link_local

routers = Cases("RA guard")


def _ra() -> bytes:
    return p.router_advertisement(_MAC, routers.data())


routers.drop("a router advertisement", message(p.RA, _ra()), Reason.RA_GUARD)
routers.drop("one to the gateway alone", message(p.RA, _ra(), to=ROUTER), Reason.RA_GUARD)
routers.drop(
    "one that the gateway seems to send", message(p.RA, _ra(), source=ROUTER), Reason.SOURCE
)
routers.drop("one from a global address", message(p.RA, _ra(), source=HERE), Reason.RA_GUARD)
routers.drop("one with the wrong hop limit", message(p.RA, _ra(), hops=64), Reason.RA_GUARD)
routers.drop("one with a code", message(p.RA, _ra(), code=1), Reason.RA_GUARD)
routers.drop("one to the routers", message(p.RA, _ra(), to=ALL_ROUTERS), Reason.RA_GUARD)
routers.drop(
    "one to another VM's link-local address", message(p.RA, _ra(), to=_FRIEND_LINK), Reason.RA_GUARD
)
routers.drop(
    "one to another VM's address", message(p.RA, _ra(), source=HERE, to=_FRIEND), Reason.RA_GUARD
)
for name, headers in (
    ("behind hop-by-hop options", [p.options(p.HOP_BY_HOP)]),
    ("behind destination options", [p.options(p.DESTINATION)]),
    ("behind two headers of options", [p.options(p.DESTINATION)] * 2),
    ("behind thirty headers of options", [p.options(p.DESTINATION)] * 30),
    ("behind a routing header", [p.routing(0, left=0)]),
    ("in an atomic fragment", [p.fragment(0, more=False)]),
    ("in a first fragment", [p.fragment(0, more=True)]),
    ("behind options in a fragment", [p.options(p.DESTINATION), p.fragment(0, more=False)]),
    ("in a fragment, behind options", [p.fragment(0, more=False), p.options(p.DESTINATION)]),
    ("in a mobility header's place", [p.Header(p.MOBILITY, bytes(7))]),
):
    reason = Reason.LINK_HEADER
    routers.drop(f"one {name}", message(p.RA, _ra(), headers), reason)
_whole = p.icmp6(LINK, ALL_NODES, p.RA, _ra())
_chain = bytes([p.ICMP6, 0]) + p.PAD
routers.talk(
    "one in two fragments",
    routers.dropped(
        six(p.ICMP6, _whole[:24], [p.fragment(0, more=True)], source=LINK, to=ALL_NODES, hops=255),
        Reason.LINK_HEADER,
    ),
    routers.dropped(
        six(p.ICMP6, _whole[24:], [p.fragment(3, more=False)], source=LINK, to=ALL_NODES, hops=255),
        Reason.LINK_HEADER,
    ),
)
routers.talk(
    "one whose type is in the second fragment",
    routers.dropped(
        six(p.DESTINATION, _chain, [p.fragment(0, more=True)], source=LINK, to=ALL_NODES, hops=255),
        Reason.LINK_HEADER,
    ),
    routers.dropped(
        six(
            p.DESTINATION, _whole, [p.fragment(1, more=False)], source=LINK, to=ALL_NODES, hops=255
        ),
        Reason.LINK_HEADER,
    ),
)
_inner = p.ip6(LINK, ALL_NODES, p.ICMP6, p.icmp6(LINK, ALL_NODES, p.RA, _ra()), hops=255)
routers.drop("one in IPv6 in IPv6, to a VM", six(p.IPV6, _inner, to=_FRIEND), Reason.TUNNEL)
routers.drop(
    "one in IPv6 in IPv6, to the gateway",
    six(p.IPV6, _inner, source=LINK, to=ROUTER),
    Reason.LINK_PROTOCOL,
)
routers.drop("one in GRE, to a VM", six(p.GRE, b"\0\0\x86\xdd" + _inner, to=_FRIEND), Reason.TUNNEL)
routers.drop(
    "one in UDP for Teredo, to the gateway",
    datagram(_inner, source=LINK, to=ROUTER, ports=(3544, 3544)),
    Reason.LINK_PROTOCOL,
)
routers.drop(
    "one in a jumbogram",
    message(p.RA, _ra(), [p.options(p.HOP_BY_HOP, b"\xc2\x04\0\x01\0\0")]),
    Reason.LINK_HEADER,
)

_target = _FRIEND.packed + HERE.packed + b"\x02\x01" + p.mac(_MAC)
redirects = Cases("Redirects")
redirects.drop(
    "a redirect to the gateway",
    message(p.REDIRECT, bytes(4) + _target + redirects.data(), to=ROUTER),
    Reason.REDIRECT,
)
redirects.drop(
    "a redirect that the gateway seems to send, to a VM",
    message(p.REDIRECT, bytes(4) + _target + redirects.data(), source=ROUTER, to=_FRIEND),
    Reason.SOURCE,
)
redirects.drop(
    "a redirect to a VM",
    message(p.REDIRECT, bytes(4) + _target + redirects.data(), source=HERE, to=_FRIEND),
    Reason.REDIRECT,
)
redirects.drop(
    "a redirect behind options",
    message(
        p.REDIRECT,
        bytes(4) + _target + redirects.data(),
        [p.options(p.DESTINATION)],
        source=HERE,
        to=_FRIEND,
    ),
    Reason.REDIRECT,
)

nd = Cases("Neighbour discovery")
_solicited = IPv6Address("ff02::1:ff00:1")


def _ns(target: IPv6Address = ROUTER, **more: object) -> bytes:
    settings = {"to": ROUTER, **more}
    return message(p.NS, p.neighbor(target, _MAC), **settings)  # type: ignore[arg-type]


def _na(target: IPv6Address, link: str = _MAC, **more: object) -> bytes:
    body = p.neighbor(target, link, flags=0x60, option=2)
    return message(p.NA, body, **{"to": ROUTER, **more})  # type: ignore[arg-type]


nd.drop("an advertisement of the gateway's address", _na(ROUTER, to=ALL_NODES), Reason.ND_TARGET)
nd.drop("an advertisement of another VM's address", _na(address("bob")), Reason.ND_TARGET)
nd.drop("the same to all nodes", _na(address("bob"), to=ALL_NODES), Reason.ND_TARGET)
nd.drop(
    "an advertisement of another VM's link-local address",
    _na(VMS["bob"].link_local),
    Reason.ND_TARGET,
)
nd.drop("an advertisement in another VM's name", _na(HERE, source=_FRIEND_LINK), Reason.SOURCE)
nd.drop("an advertisement with the wrong hop limit", _na(HERE, hops=64), Reason.ND_MALFORMED)
nd.drop("an advertisement with a code", _na(HERE, code=1), Reason.ND_MALFORMED)
nd.drop("a solicitation with the wrong hop limit", _ns(hops=254), Reason.ND_MALFORMED)
nd.drop("a solicitation with a code", _ns(code=7), Reason.ND_MALFORMED)
nd.drop("a solicitation of a group", _ns(ALL_NODES), Reason.ND_TARGET)
nd.drop("a solicitation of another VM's address", _ns(address("bob")), Reason.ND_TARGET)
nd.drop("a solicitation in another VM's name", _ns(source=VMS["bob"].link_local), Reason.SOURCE)
nd.drop(
    "a check whether the gateway's address is free",
    _ns(source=IPv6Address("::"), to=_solicited),
    Reason.ND_TARGET,
)
nd.drop(
    "a check whether another VM's address is free",
    _ns(address("bob"), source=IPv6Address("::"), to=IPv6Address("ff02::1:ff00:1003")),
    Reason.ND_TARGET,
)
nd.drop(
    "a check for duplicates that is not to the address's group",
    _ns(HERE, source=IPv6Address("::"), to=ALL_NODES),
    Reason.UNSPECIFIED,
)
nd.drop("a solicitation routed to a VM", _ns(_FRIEND, source=HERE, to=_FRIEND), Reason.ICMP_TYPE)
nd.drop(
    "an inverse solicitation", message(141, bytes(4) + nd.data(), to=ROUTER), Reason.LINK_PROTOCOL
)
for name, headers in (
    ("in an atomic fragment", [p.fragment(0, more=False)]),
    ("behind destination options", [p.options(p.DESTINATION)]),
    ("behind hop-by-hop options", [p.options(p.HOP_BY_HOP)]),
):
    body = p.neighbor(ROUTER, _MAC)
    nd.drop(f"a solicitation {name}", message(p.NS, body, headers, to=ROUTER), Reason.LINK_HEADER)
nd.drop(
    "an advertisement in an atomic fragment",
    message(
        p.NA,
        p.neighbor(HERE, _MAC, option=2),
        [p.fragment(0, more=False)],
        to=ROUTER,
    ),
    Reason.LINK_HEADER,
)
nd.drop(
    "a router solicitation with the wrong hop limit",
    message(p.RS, bytes(4), to=ALL_ROUTERS, hops=64),
    Reason.ND_MALFORMED,
)
nd.drop(
    "a router solicitation from a global address",
    message(p.RS, bytes(4), source=HERE, to=ALL_ROUTERS),
    Reason.ND_MALFORMED,
)
nd.drop("a hundred solicitations at once", _ns(), Reason.CONTROL_RATE, times=100)
nd.talk(
    "solicitations from forty addresses of its /64",
    *(
        nd.seen(
            _ns(at="wide", source=IPv6Address(f"2001:db8:1:6::{n:x}")),
            "host",
            "wide",
            at="wide",
            look_for=p.mac(GATEWAY_MAC),
        )
        for n in range(1, 17)
    ),
    *(
        nd.dropped(
            _ns(at="wide", source=IPv6Address(f"2001:db8:1:6::{n:x}")),
            Reason.ND_SOURCES,
            at="wide",
        )
        for n in range(20, 45)
    ),
)

mld = Cases("Multicast listeners")
_ALERT = p.options(p.HOP_BY_HOP, b"\x05\x02\0\0\x01\0")
_reporters = IPv6Address("ff02::16")
for name, kind, headers, source, reason in (
    ("a report", p.MLD2_REPORT, [_ALERT], LINK, Reason.MLD),
    ("a report from nobody", p.MLD2_REPORT, [_ALERT], IPv6Address("::"), Reason.MLD),
    ("an old report", p.MLD_REPORT, [_ALERT], LINK, Reason.MLD),
    ("a done", p.MLD_DONE, [_ALERT], LINK, Reason.MLD),
    ("a query", p.MLD_QUERY, [_ALERT], LINK, Reason.LINK_HEADER),
    ("a query without a router alert", p.MLD_QUERY, [], LINK, Reason.ND_MALFORMED),
    ("a report without a router alert", p.MLD2_REPORT, [], LINK, Reason.ND_MALFORMED),
    ("a report behind more options", p.MLD2_REPORT, [_ALERT, _ALERT], LINK, Reason.LINK_HEADER),
):
    body = bytes(4) + mld.data() + bytes(8)
    frame = message(kind, body, headers, source=source, to=_reporters, hops=1)
    mld.drop(name, frame, reason)

dhcp = Cases("Address servers")
_client, _servers = IPv6Address("ff02::1:2"), IPv6Address("ff02::1:2")
dhcp.drop(
    "DHCPv6 answers to the link",
    datagram(dhcp.data(), source=LINK, to=ALL_NODES, ports=(547, 546)),
    Reason.LINK_PROTOCOL,
)
dhcp.drop(
    "DHCPv6 answers to a VM",
    datagram(dhcp.data(), to=_FRIEND, ports=(547, 546)),
    Reason.DHCP_SERVER,
)
dhcp.drop(
    "DHCPv6 answers to a VM, behind options",
    datagram(dhcp.data(), [p.options(p.DESTINATION)], to=_FRIEND, ports=(547, 546)),
    Reason.DHCP_SERVER,
)
dhcp.drop(
    "DHCPv6 answers to a VM, in a fragment",
    datagram(dhcp.data(), [p.fragment(0, more=True)], to=_FRIEND, ports=(547, 546)),
    Reason.DHCP_SERVER,
)
dhcp.drop(
    "DHCPv6 solicitation",
    datagram(dhcp.data(), source=LINK, to=_servers, ports=(546, 547)),
    Reason.LINK_PROTOCOL,
)
_here, _friend = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")
dhcp.drop(
    "DHCP answers to a VM",
    four(p.UDP, p.udp(_here, _friend, 67, 68, dhcp.data()), to=_friend),
    Reason.DHCP_SERVER,
)
_all = IPv4Address("255.255.255.255")
dhcp.drop(
    "DHCP answers to all",
    four(p.UDP, p.udp(_here, _all, 67, 68, dhcp.data()), to=_all, link="ff:ff:ff:ff:ff:ff"),
    Reason.DESTINATION,
)
_none = IPv4Address("0.0.0.0")
dhcp.drop(
    "DHCP discovery",
    four(
        p.UDP,
        p.udp(_none, _all, 68, 67, dhcp.data()),
        source=_none,
        to=_all,
        link="ff:ff:ff:ff:ff:ff",
    ),
    Reason.DESTINATION,
)

CASES = [*routers.all, *redirects.all, *nd.all, *mld.all, *dhcp.all]
