"""What stands in a namespace of links, limits, addresses, neighbours and routes, as plain values.

What should stand is made of the same values (`vm_agent.network.layout`), so that a difference of
sets says what is missing, and what is ours and nobody wants any more.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from vm_agent.network.netlink import (
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETNEIGH,
    RTM_GETROUTE,
    Attributes,
    Message,
    Netlink,
    attribute,
    attributes,
    text,
)
from vm_agent.network.shaping import Limit, read_limits

PROTOCOL = 0xDC
"""What marks a route as ours (`rtm_protocol`; others' are in iproute2's rt_protos)."""

_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_ROUTE = struct.Struct("=BBBBBBBBI")
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_IFALIAS, _IFLA_EXT_MASK = 1, 3, 4, 20, 29
_SKIP_STATS = struct.pack("=I", 1 << 3)
_IFF_UP = 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_NDA_DST, _NDA_LLADDR = 1, 2
_NUD_PERMANENT = 0x80
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_VIA = 1, 4, 5, 18
_RT_TABLE_MAIN = 254
_RTN_UNICAST, _RTN_UNREACHABLE = 1, 7
_ANY = {socket.AF_INET: ip_network("0.0.0.0/0"), socket.AF_INET6: ip_network("::/0")}


class Link(NamedTuple):
    """An interface."""

    name: str
    alias: str
    mtu: int
    mac: str
    up: bool


class Address(NamedTuple):
    """An address of the host on an interface, with its length: `fe80::1/64`."""

    link: str
    address: str


class Neighbour(NamedTuple):
    """A neighbour whose MAC is known for good, so that nobody asks for it."""

    link: str
    address: str
    mac: str


class Route(NamedTuple):
    """A route of ours; without a link it says that there is no way."""

    to: str
    via: str
    link: str


Item = Link | Limit | Address | Neighbour | Route


class Standing(NamedTuple):
    """All that stands in a namespace.

    Attributes:
        links: By interface index; those of others too.
        items: Limits, addresses, neighbours for good, and routes of ours.
    """

    links: dict[int, Link]
    items: set[Item]


def read_links(netlink: Netlink) -> dict[int, Link]:
    """All interfaces by index."""
    question = _LINK.pack(0, 0, 0, 0, 0) + attribute(_IFLA_EXT_MASK, _SKIP_STATS)
    return dict(map(_link, netlink.dump(RTM_GETLINK, question)))


def find_link(netlink: Netlink, name: str) -> tuple[int, Link] | None:
    """The index of an interface, and what it is; None if there is none of that name.

    Raises:
        OSError: The kernel refuses.
    """
    question = (
        _LINK.pack(0, 0, 0, 0, 0)
        + attribute(_IFLA_EXT_MASK, _SKIP_STATS)
        + attribute(_IFLA_IFNAME, name.encode() + b"\0")
    )
    try:
        return _link(netlink.ask(RTM_GETLINK, question))
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        return None


def _link(message: Message) -> tuple[int, Link]:
    _, _, index, flags, _ = _LINK.unpack_from(message.body)
    given = attributes(message.body, _LINK.size)
    alias = given.get(_IFLA_IFALIAS)
    return index, Link(
        name=text(given[_IFLA_IFNAME]),
        alias=text(alias) if alias is not None else "",
        mac=bytes(given.get(_IFLA_ADDRESS, b"")).hex(":"),
        mtu=int.from_bytes(given[_IFLA_MTU], "little"),
        up=bool(flags & _IFF_UP),
    )


def read_all(netlink: Netlink) -> Standing:
    """Everything, in five questions and a few µs per thing.

    Raises:
        OSError: The kernel refuses.
    """
    links = read_links(netlink)
    names = {index: link.name for index, link in links.items()}
    items: set[Item] = set(_addresses(netlink, names))
    items.update(_neighbours(netlink, names))
    items.update(read_limits(netlink, names))
    for family in (socket.AF_INET6, socket.AF_INET):
        items.update(_routes(netlink, names, family))
    return Standing(links, items)


def _addresses(netlink: Netlink, names: dict[int, str]) -> Iterator[Address]:
    for message in netlink.dump(RTM_GETADDR, _ADDRESS.pack(0, 0, 0, 0, 0)):
        family, length, _, _, index = _ADDRESS.unpack_from(message.body)
        given = attributes(message.body, _ADDRESS.size)
        value = given.get(_IFA_LOCAL, given.get(_IFA_ADDRESS))
        if value is not None and index in names:
            yield Address(names[index], f"{socket.inet_ntop(family, value)}/{length}")


def _neighbours(netlink: Netlink, names: dict[int, str]) -> Iterator[Neighbour]:
    for message in netlink.dump(RTM_GETNEIGH, _NEIGHBOUR.pack(0, 0, 0, 0, 0)):
        family, index, state, _, _ = _NEIGHBOUR.unpack_from(message.body)
        if not state & _NUD_PERMANENT or family not in _ANY:
            continue
        given = attributes(message.body, _NEIGHBOUR.size)
        if _NDA_LLADDR in given and index in names:
            address = socket.inet_ntop(family, given[_NDA_DST])
            yield Neighbour(names[index], address, bytes(given[_NDA_LLADDR]).hex(":"))


def _routes(netlink: Netlink, names: dict[int, str], family: int) -> Iterator[Route]:
    question = _ROUTE.pack(family, 0, 0, 0, _RT_TABLE_MAIN, PROTOCOL, 0, 0, 0)
    for message in netlink.dump(RTM_GETROUTE, question):
        _, length, _, _, _, protocol, _, kind, _ = _ROUTE.unpack_from(message.body)
        if protocol != PROTOCOL or kind not in (_RTN_UNICAST, _RTN_UNREACHABLE):
            continue
        given = attributes(message.body, _ROUTE.size)
        to = str(_ANY[socket.AddressFamily(family)])
        if _RTA_DST in given:
            to = f"{socket.inet_ntop(family, given[_RTA_DST])}/{length}"
        link = ""
        if kind == _RTN_UNICAST:
            link = names.get(int.from_bytes(given[_RTA_OIF], "little"), "")
        yield Route(to, _gateway(given), link)


def _gateway(given: Attributes) -> str:
    if (value := given.get(_RTA_GATEWAY)) is not None:
        return str(ip_address(bytes(value)))
    if (value := given.get(_RTA_VIA)) is not None:
        return str(ip_address(bytes(value[2:])))
    return ""


def is_ipv6(text_: str) -> bool:
    """Whether an address or a network, written out, is IPv6."""
    return ":" in text_
