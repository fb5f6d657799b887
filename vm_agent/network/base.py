"""The fabric before its first VM: settings of its namespace, its way out, the host's own side."""

from __future__ import annotations

import socket
from contextlib import suppress
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path

import structlog
from pyroute2 import IPRoute

from vm_agent import namespace
from vm_agent.network.changes import put
from vm_agent.network.items import Address, Item, read_all
from vm_agent.network.layout import UPLINK, Layout
from vm_agent.network.netlink import opened
from vm_agent.network.resident import Resident
from vm_agent.network.taps import NetworkError

_log = structlog.get_logger("decisec.fabric")

_SYSCTL = Path("/proc/sys/net")
_MOST_NEIGHBOURS = 65_536
_SETTINGS = {
    "ipv6/conf/all/forwarding": "1",
    "ipv6/conf/default/forwarding": "1",
    # What guests say about routers and addresses is theirs; the host believes nothing of it.
    **{
        f"ipv6/conf/{which}/{name}": "0"
        for which in ("all", "default")
        for name in ("accept_ra", "accept_redirects", "accept_dad", "dad_transmits", "autoconf")
    },
    # Taps have fe80::1, and no address besides.
    "ipv6/conf/default/addr_gen_mode": "1",
    "ipv4/ip_forward": "1",
    "ipv4/conf/all/send_redirects": "0",
    "ipv4/conf/default/send_redirects": "0",
    "ipv4/conf/all/accept_redirects": "0",
    "ipv4/conf/default/accept_redirects": "0",
    # Sources are validated per tap by the rules; a way back need not be the way here.
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/default/rp_filter": "0",
}


def settle(route: IPRoute, layout: Layout) -> None:
    """Set the namespace up. May be repeated. For a thread that is in the fabric.

    Raises:
        OSError, NetlinkError: The kernel refuses.
    """
    del layout
    for name, value in _SETTINGS.items():
        path = _SYSCTL / name
        if path.read_text().strip() != value:
            path.write_text(value)
    route.link("set", index=socket.if_nametoindex("lo"), state="up")


async def lay_uplink(layout: Layout, inside: Resident, outside: Resident) -> None:
    """Make the way out, unless it is there, and the routes on both ends of it.

    Raises:
        NetworkError: The interface of the settings is not there.
        OSError, NetlinkError: The kernel refuses.
    """
    if not await inside.run(lambda _: _there(UPLINK)):
        if layout.interface:
            await outside.run(lambda route: _take_interface(route, layout))
        else:
            await outside.run(lambda route: _make_pair(route, layout))
    await inside.run(lambda route: _open_uplink(route, layout))
    await inside.run(lambda _: mend(layout.inside()))
    if not layout.interface:
        await outside.run(lambda route: _open_outer(route, layout))
    await outside.run(lambda _: mend(layout.outside()))


def mend(wanted: set[Item]) -> dict[str, int]:
    """Put in place what is missing; how many of each kind."""
    if not wanted:
        return {}
    with opened() as netlink:
        missing = wanted - read_all(netlink).items
    put(sorted(missing, key=lambda one: type(one).__name__))  # addresses before routes
    kinds: dict[str, int] = {}
    for item in missing:
        kind = type(item).__name__.lower()
        kinds[kind] = kinds.get(kind, 0) + 1
    return kinds


def addresses() -> list[IPv6Network | IPv4Network]:
    """Every address that is the host's own, for a thread that is where it has them."""
    with opened() as netlink:
        items = read_all(netlink).items
    found = sorted({one.address.partition("/")[0] for one in items if isinstance(one, Address)})
    # Link-local ones are out of reach, and anybody's.
    return [ip_network(one) for one in found if not ip_address(one).is_link_local]


def _there(name: str) -> bool:
    return any(name == found for _, found in socket.if_nameindex())


def _make_pair(route: IPRoute, layout: Layout) -> None:
    if _there(layout.outer):
        # Its other end is gone from the fabric, or never came there.
        route.link("del", index=socket.if_nametoindex(layout.outer))
    with (namespace.NETNS_DIR / layout.netns).open("rb") as fabric:
        route.link(
            "add", ifname=layout.outer, kind="veth", mtu=layout.mtu,
            peer={"ifname": UPLINK, "net_ns_fd": fabric.fileno(), "mtu": layout.mtu},
        )  # fmt: skip


def _take_interface(route: IPRoute, layout: Layout) -> None:
    if not _there(layout.interface):
        raise NetworkError(f"there is no interface {layout.interface} for the uplink")
    index = socket.if_nametoindex(layout.interface)
    with (namespace.NETNS_DIR / layout.netns).open("rb") as fabric:
        route.link("set", index=index, net_ns_fd=fabric.fileno(), ifname=UPLINK)


def _open_uplink(route: IPRoute, layout: Layout) -> None:
    # The default of the fabric is that links have no address of their own; this one needs one.
    mode = "0" if layout.interface else "1"
    (_SYSCTL / f"ipv6/conf/{UPLINK}/addr_gen_mode").write_text(mode)
    route.link("set", index=socket.if_nametoindex(UPLINK), ifalias=layout.alias, state="up")


def _open_outer(route: IPRoute, layout: Layout) -> None:
    index = socket.if_nametoindex(layout.outer)
    route.link("set", index=index, ifalias=layout.alias, state="up")
    with suppress(OSError):
        _allow_neighbours()


def _allow_neighbours() -> None:
    """Raise the most neighbours that the host keeps, where it is the usual 1024.

    The table is one for all namespaces, and only the host's first shows its size.
    """
    for family in ("ipv6", "ipv4"):
        path = _SYSCTL / family / "neigh/default/gc_thresh3"
        if path.exists() and (before := int(path.read_text())) < _MOST_NEIGHBOURS:
            path.write_text(str(_MOST_NEIGHBOURS))
            _log.info("neighbours.allowed", family=family, most=_MOST_NEIGHBOURS, before=before)
