"""What is put in place by plain messages is what the kernel then tells, and goes again."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
from pyroute2 import IPRoute

from vm_agent import namespace
from vm_agent.network import taps
from vm_agent.network.changes import delete_links, open_link, put, take
from vm_agent.network.items import Address, Item, Link, Neighbour, Route, find_link, read_all
from vm_agent.network.mending import in_order
from vm_agent.network.netlink import Netlink
from vm_agent.network.shaping import limit_of

T = TypeVar("T")

pytestmark = pytest.mark.skipif(taps.available() is not None, reason=taps.available() or "")

VM = "vm00000001"
MAC = "06:12:34:56:78:9a"
BEHIND: list[Item] = [
    limit_of(VM, 1_000_000, 1500),
    Address(VM, "fe80::1/64"),
    Address("lo", "169.254.0.1/32"),
    Neighbour(VM, "fe80::412:34ff:fe56:789a", MAC),
    Neighbour(VM, "203.0.113.5", MAC),
    Route("2001:db8::5/128", "fe80::412:34ff:fe56:789a", VM),
    Route("2001:db8:0:1::/64", "fe80::412:34ff:fe56:789a", VM),
    Route("2001:db8::/48", "", ""),
    Route("203.0.113.5/32", "", VM),
    Route("203.0.113.0/24", "", ""),
    Route("::/0", "fe80::412:34ff:fe56:789a", VM),
    Route("0.0.0.0/0", "fe80::412:34ff:fe56:789a", VM),
]


@pytest.fixture
def alone() -> Callable[[Callable[[], T]], Awaitable[T]]:
    """Does something in a namespace that is gone afterwards, `VM` and `lo` open in it."""

    async def run(work: Callable[[], T]) -> T:
        def inside() -> T:
            namespace.enter_new()
            # As in a fabric: no address comes of itself, a while after a link was opened.
            Path("/proc/sys/net/ipv6/conf/default/addr_gen_mode").write_text("1")
            with IPRoute() as route:
                route.link("add", ifname=VM, kind="veth", peer={"ifname": "other"})
            for name in ("lo", VM, "other"):
                open_link(name)
            return work()

        return await namespace.in_own_thread(inside)

    return run


def _standing() -> set[Item]:
    netlink = Netlink()
    try:
        return read_all(netlink).items
    finally:
        netlink.close()


def _find(name: str) -> Link | None:
    netlink = Netlink()
    try:
        found = find_link(netlink, name)
    finally:
        netlink.close()
    if found is None:
        return None
    assert found[0] == socket.if_nametoindex(name)
    return found[1]


async def test_items_stand_as_they_were_put_and_go_when_taken(
    alone: Callable[[Callable[[], object]], Awaitable[object]],
) -> None:
    """Twice makes no difference, neither of putting nor of taking."""

    def work() -> None:
        before = _standing()
        items = sorted(BEHIND, key=in_order)
        for _ in range(2):
            put(items)
            assert _standing() - before == set(items)
        for _ in range(2):
            take(reversed(items))
            assert _standing() == before

    await alone(work)


async def test_a_link_is_changed_and_found_by_its_name(
    alone: Callable[[Callable[[], object]], Awaitable[object]],
) -> None:
    """Alias, largest packet, MAC, open or not; no link of another name is found."""

    def work() -> None:
        for wanted in (
            Link(VM, "decisec a b 1 acme", 1400, MAC, up=True),
            Link(VM, "somebody else's", 1280, "02:dc:00:00:00:01", up=False),
        ):
            put([wanted])
            assert _find(VM) == wanted
        assert _find("vm00000002") is None

    await alone(work)


async def test_many_links_go_together_and_no_others(
    alone: Callable[[Callable[[], object]], Awaitable[object]],
) -> None:
    """Those that are gone already do not keep the others."""

    def work() -> None:
        names = [f"d{number}" for number in range(5)]
        with IPRoute() as route:
            for name in names:
                route.link("add", ifname=name, kind="veth", peer={"ifname": f"p{name}"})
        delete_links(["nobody", *names[:3], "d77"])
        assert {name for _, name in socket.if_nameindex()} == {
            *("lo", VM, "other"),
            *(name for one in names[3:] for name in (one, f"p{one}")),
        }
        delete_links(names[:4])
        delete_links([])
        assert {name for _, name in socket.if_nameindex()} == {"lo", VM, "other", "d4", "pd4"}

    await alone(work)


async def test_what_cannot_be_put_says_what_the_kernel_says(
    alone: Callable[[Callable[[], object]], Awaitable[object]],
) -> None:
    """A link that is not there; a way through nobody."""

    def work() -> None:
        with pytest.raises(OSError, match="no interface gone0"):
            put([Address("gone0", "fe80::1/64")])
        with pytest.raises(OSError, match=os.strerror(113)):
            put([Route("2001:db8::/64", "2001:db8:1::1", VM)])
        gone = limit_of("gone0", 1_000_000, 1500)
        take([Address("gone0", "fe80::1/64"), Neighbour("gone0", "fe80::2", MAC), gone])

    await alone(work)
