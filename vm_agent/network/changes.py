"""How an item is put in place or taken away. For a thread that is in the right namespace."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from vm_agent.network.items import PROTOCOL, Address, Item, Link, Neighbour, Route, is_ipv6
from vm_agent.network.netlink import PUT, Netlink
from vm_agent.network.shaping import Limit, message

_NUD_PERMANENT = 0x80
_IFA_NODAD = 0x02
_SCOPE_LINK = 253
_GOING = 0xDEC15
"""The interface group of links that are deleted together."""

_GONE = frozenset({errno.ENODEV, errno.ESRCH, errno.ENOENT, errno.EADDRNOTAVAIL, errno.ENXIO})


def put(route: IPRoute, item: Item) -> None:
    """Put an item in place; nothing happens if it is there. A link must be there.

    Raises:
        NetlinkError, OSError: The kernel refuses.
    """
    match item:
        case Link(name, alias, mtu, mac, up):
            state = "up" if up else "down"
            route.link("set", index=_index(name), ifalias=alias, mtu=mtu, address=mac, state=state)
        case Limit():
            _put_limit(item)
        case Address(link, address):
            plain, _, length = address.partition("/")
            family = _family(address)
            flags = {"flags": _IFA_NODAD} if family == socket.AF_INET6 else {}
            route.addr(
                "replace", index=_index(link), address=plain, prefixlen=int(length),
                family=family, **flags,
            )  # fmt: skip
        case Neighbour(link, address, mac):
            route.neigh(
                "replace", ifindex=_index(link), dst=address, lladdr=mac, state=_NUD_PERMANENT,
                family=_family(address),
            )  # fmt: skip
        case Route():
            route.route("replace", **_described(item))


def take(route: IPRoute, item: Item) -> None:
    """Take an item away; nothing happens if it is gone. Links go by `delete_links`.

    Raises:
        NetlinkError, OSError: The kernel refuses.
    """
    match item:
        case Link():
            raise TypeError("links go by delete_links")
        case Limit():
            _unless_gone(lambda: _tell(*_taking(item)))
        case Address(link, address):
            plain, _, length = address.partition("/")
            _unless_gone(
                lambda: route.addr(
                    "del", index=_index(link), address=plain, prefixlen=int(length),
                    family=_family(address),
                )
            )  # fmt: skip
        case Neighbour(link, address, _):
            _unless_gone(
                lambda: route.neigh(
                    "del", ifindex=_index(link), dst=address, family=_family(address)
                )
            )
        case Route():
            _unless_gone(lambda: route.route("del", **_described(item)))


def delete_links(route: IPRoute, names: list[str]) -> None:
    """Delete links, and with them their addresses, neighbours and routes; many in one go.

    One takes 25 ms, most of it to wait until nobody reads it any more; many wait together.

    Raises:
        NetlinkError, OSError: The kernel refuses.
    """
    indices = {name: index for index, name in socket.if_nameindex()}
    there = [indices[name] for name in names if name in indices]
    if len(there) == 1:
        _unless_gone(lambda: route.link("del", index=there[0]))
    elif there:
        for index in there:
            route.link("set", index=index, group=_GOING)
        route.link("del", group=_GOING)


def _put_limit(limit: Limit) -> None:
    kind, body = message(limit)
    try:
        _tell(kind, body, PUT)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        raise OSError(errno.ENOENT, "limits need sch_tbf (CONFIG_NET_SCH_TBF)") from error


def _taking(limit: Limit) -> tuple[int, bytes]:
    kind, body = message(limit)
    return kind + 1, body


def _tell(kind: int, body: bytes, flags: int = 0) -> None:
    netlink = Netlink()
    try:
        netlink.tell(kind, body, flags)
    finally:
        netlink.close()


def _described(item: Route) -> dict[str, object]:
    family = _family(item.to)
    found: dict[str, object] = {"dst": item.to, "family": family, "proto": PROTOCOL}
    if not item.link:
        # Above all that could be meant instead.
        return found | {"type": "unreachable", "priority": 4096}
    found["oif"] = _index(item.link)
    if not item.via:
        return found | {"scope": _SCOPE_LINK}
    if family == socket.AF_INET and is_ipv6(item.via):
        return found | {"via": {"family": socket.AF_INET6, "addr": item.via}}
    return found | {"gateway": item.via}


def _family(text: str) -> socket.AddressFamily:
    return socket.AF_INET6 if is_ipv6(text) else socket.AF_INET


def _index(name: str) -> int:
    return socket.if_nametoindex(name)


def _unless_gone(change: Callable[[], object]) -> None:
    try:
        change()
    except NetlinkError as error:
        if error.code not in _GONE:
            raise
    except OSError as error:
        if error.errno not in _GONE:
            raise
