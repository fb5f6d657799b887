"""How an item is put in place or taken away. For a thread that is in the right namespace.

One message an item, without pyroute2: it takes half a millisecond for each, and a VM has five.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from vm_agent.network.items import PROTOCOL, Address, Item, Link, Neighbour, Route, is_ipv6
from vm_agent.network.netlink import Netlink, attribute, opened
from vm_agent.network.shaping import Limit, message

RTM_SETLINK = 19
LINK = struct.Struct("=BxHiII")
"""`struct ifinfomsg`: family, type, index, flags, which flags."""

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_IFALIAS, IFLA_GROUP = 1, 3, 4, 20, 27

_RTM_DELLINK, _RTM_NEWADDR, _RTM_NEWNEIGH, _RTM_NEWROUTE = 17, 20, 28, 24
_ADDRESS = struct.Struct("=BBBBI")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_ROUTE = struct.Struct("=BBBBBBBBI")
_REPLACE = 0x100 | 0x400
"""NLM_F_REPLACE and NLM_F_CREATE."""

_IFF_UP = 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_NODAD = 1, 2, 0x02
_NDA_DST, _NDA_LLADDR, _NUD_PERMANENT = 1, 2, 0x80
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_VIA = 1, 4, 5, 6, 18
_RT_TABLE_MAIN, _RTN_UNICAST, _RTN_UNREACHABLE, _SCOPE_LINK = 254, 1, 7, 253
_LAST = 4096
"""The metric of what holds where nothing else does."""

_GOING = 0xDEC15
"""The interface group of links that are deleted together."""

_GONE = frozenset({errno.ENODEV, errno.ESRCH, errno.ENOENT, errno.EADDRNOTAVAIL, errno.ENXIO})


def put(items: Iterable[Item]) -> None:
    """Put items in place, in this order; nothing happens to those that are. Links must be there.

    Raises:
        OSError: The kernel refuses; those before stand.
    """
    with opened() as netlink:
        for item in items:
            if isinstance(item, Link):
                netlink.tell(RTM_SETLINK, _link(item))
            else:
                _put(netlink, item)


def _put(netlink: Netlink, item: Item) -> None:
    kind, body = _message(item)
    try:
        netlink.tell(kind, body, _REPLACE)
    except FileNotFoundError as error:
        if not isinstance(item, Limit):
            raise
        raise OSError(errno.ENOENT, "limits need sch_tbf (CONFIG_NET_SCH_TBF)") from error


def take(items: Iterable[Item]) -> None:
    """Take items away; nothing happens to those that are gone. Links go by `delete_links`.

    Raises:
        OSError: The kernel refuses; those before are gone.
    """
    with opened() as netlink:
        for item in items:
            # Of a queueing discipline that is not the one in place the kernel says `EINVAL`.
            with _unless_gone(errno.EINVAL if isinstance(item, Limit) else 0):
                kind, body = _message(item)
                netlink.tell(kind + 1, body)


def delete_links(names: Iterable[str]) -> None:
    """Delete links, and with them their addresses, neighbours and routes; many in one go.

    One takes 25 ms, most of it to wait until nobody reads it any more; many wait together.

    Raises:
        OSError: The kernel refuses.
    """
    with opened() as netlink:
        there: list[int] = []
        for name in names:
            with _unless_gone():
                there.append(_index(name))
        if len(there) == 1:
            with _unless_gone():
                netlink.tell(_RTM_DELLINK, LINK.pack(0, 0, there[0], 0, 0))
        elif there:
            group = attribute(IFLA_GROUP, struct.pack("=I", _GOING))
            for index in there:
                with _unless_gone():
                    netlink.tell(RTM_SETLINK, LINK.pack(0, 0, index, 0, 0) + group)
            with _unless_gone():
                netlink.tell(_RTM_DELLINK, LINK.pack(0, 0, 0, 0, 0) + group)


def open_link(name: str) -> None:
    """Open a link as it is.

    Raises:
        OSError: The kernel refuses.
    """
    with opened() as netlink:
        netlink.tell(RTM_SETLINK, LINK.pack(0, 0, _index(name), _IFF_UP, _IFF_UP))


def described(link: Link) -> bytes:
    """The attributes of a link: alias, largest packet, MAC."""
    return (
        attribute(IFLA_IFALIAS, link.alias.encode() + b"\0")
        + attribute(IFLA_MTU, struct.pack("=I", link.mtu))
        + attribute(IFLA_ADDRESS, bytes.fromhex(link.mac.replace(":", "")))
    )


def _link(item: Link) -> bytes:
    up = _IFF_UP if item.up else 0
    return LINK.pack(0, 0, _index(item.name), up, _IFF_UP) + described(item)


def _message(item: Item) -> tuple[int, bytes]:
    """The message that puts an item in place; the next kind takes it away."""
    match item:
        case Link():
            raise TypeError("links go by delete_links")
        case Address(link, address):
            plain, _, length = address.partition("/")
            family = _family(plain)
            flags = _IFA_NODAD if family == socket.AF_INET6 else 0
            value = socket.inet_pton(family, plain)
            return _RTM_NEWADDR, (
                _ADDRESS.pack(family, int(length), flags, 0, _index(link))
                + attribute(_IFA_LOCAL, value)
                + attribute(_IFA_ADDRESS, value)
            )
        case Neighbour(link, address, mac):
            family = _family(address)
            return _RTM_NEWNEIGH, (
                _NEIGHBOUR.pack(family, _index(link), _NUD_PERMANENT, 0, 0)
                + attribute(_NDA_DST, socket.inet_pton(family, address))
                + attribute(_NDA_LLADDR, bytes.fromhex(mac.replace(":", "")))
            )
        case Route():
            return _RTM_NEWROUTE, _route(item)
        case Limit():
            return message(item, _index(item.link))


def _route(item: Route) -> bytes:
    plain, _, length = item.to.partition("/")
    family = _family(plain)
    kind = _RTN_UNICAST if item.link else _RTN_UNREACHABLE
    scope = _SCOPE_LINK if item.link and not item.via else 0
    body = _ROUTE.pack(family, int(length), 0, 0, _RT_TABLE_MAIN, PROTOCOL, scope, kind, 0)
    if int(length):
        body += attribute(_RTA_DST, socket.inet_pton(family, plain))
    if not item.link:
        # Above all that could be meant instead.
        return body + attribute(_RTA_PRIORITY, struct.pack("=I", _LAST))
    body += attribute(_RTA_OIF, struct.pack("=I", _index(item.link)))
    if not item.via:
        return body
    via_family = _family(item.via)
    via = socket.inet_pton(via_family, item.via)
    if via_family == family:
        return body + attribute(_RTA_GATEWAY, via)
    return body + attribute(_RTA_VIA, struct.pack("=H", via_family) + via)


def _family(text: str) -> socket.AddressFamily:
    return socket.AF_INET6 if is_ipv6(text) else socket.AF_INET


def _index(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError as error:
        # Python's says so in words only.
        raise OSError(errno.ENODEV, f"there is no interface {name}") from error


@contextmanager
def _unless_gone(also: int = 0) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _GONE and error.errno != also:
            raise
