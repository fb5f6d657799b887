"""The fabric in real namespaces: VMs as tap descriptors, the world behind its uplink."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Network

import pytest

from schemas.ids import new_id
from tests.support.wires import (
    PREFIX,
    WORLD,
    WORLD_IPV4,
    FabricRig,
    Guest,
    NotedRules,
    fabric_rig,
    udp_socket_in,
)
from vm_agent import namespace
from vm_agent.network import taps
from vm_agent.network.fabric import Fabric
from vm_agent.network.layout import Owner
from vm_agent.network.mending import Repairs
from vm_agent.network.taps import NetworkError

pytestmark = pytest.mark.skipif(
    taps.available() is not None, reason=taps.available() or "taps work"
)

_IPV6_RECVERR = 25
"""linux/in6.h: also word of what may pass is an error."""


@pytest.fixture
async def rig() -> AsyncIterator[FabricRig]:
    """A fabric for one test."""
    async with fabric_rig() as made:
        yield made


def standing_rules(rig: FabricRig) -> NotedRules:
    """The rules, as those that remember."""
    assert isinstance(rig.rules, NotedRules)
    return rig.rules


async def arrives(rig: FabricRig, guest: Guest) -> bytes:
    """What the world gets of a datagram that a guest sends there."""
    port = 4000
    inbox = await namespace.in_own_thread(lambda: udp_socket_in(rig.world, str(WORLD), port))
    try:
        guest.send(guest.udp(WORLD, port, b"hello"))
        async with asyncio.timeout(2):
            return await asyncio.get_running_loop().sock_recv(inbox, 100)
    finally:
        inbox.close()


async def comes_back(rig: FabricRig, guest: Guest) -> bytes:
    """The frame that a guest gets of a datagram from the world."""
    outbox = await namespace.in_own_thread(lambda: udp_socket_in(rig.world, str(WORLD), 4001))
    address = str(guest.vm.addresses[0].network_address)
    try:
        outbox.sendto(b"hi there", (address, 4001))
        return await guest.frame()
    finally:
        outbox.close()


async def test_a_vm_talks_to_the_world_and_the_world_to_it(rig: FabricRig) -> None:
    """No neighbour is asked for on the way, and every byte is counted as the guest's."""
    guest = await rig.guest()
    assert await arrives(rig, guest) == b"hello"
    frame = await comes_back(rig, guest)
    assert frame[:6].hex(":") == guest.vm.mac
    assert frame.endswith(b"hi there")
    sent = len(guest.udp(WORLD, 4000, b"hello"))
    assert rig.fabric.read(guest.vm.index) == (guest.received_bytes, sent)
    with rig.fabric.at_once():
        assert rig.fabric.read(guest.vm.index) == (guest.received_bytes, sent)


async def test_vms_reach_each_other_by_way_of_the_host(rig: FabricRig) -> None:
    """Routed: the frame that arrives has the host's MAC, and one hop less."""
    one, other = await rig.guest(), await rig.guest()
    one.send(one.udp(other.vm.addresses[0].network_address, 4000, b"hello"))
    frame = await other.frame()
    assert frame[:6].hex(":") == other.vm.mac
    assert frame[6:12].hex(":") != one.vm.mac
    assert frame[21] == 63
    assert frame.endswith(b"hello")


async def test_a_whole_network_and_ipv4_lead_to_their_vm(rig: FabricRig) -> None:
    """A /64 by the link-local address, IPv4 by a neighbour for good."""
    network_ = list(PREFIX.subnets(new_prefix=64))[3]
    guest = await rig.guest(addresses=(network_,), ipv4=IPv4Address("203.0.113.5"))
    routes = await rig.inside("ip", "-6", "route", "get", str(network_[0x1234]))
    assert f"via {guest.vm.link_local} dev {guest.vm.tap}" in routes
    routes = await rig.inside("ip", "route", "get", "203.0.113.5")
    assert f"dev {guest.vm.tap}" in routes
    assert await arrives(rig, guest) == b"hello"
    outbox = await namespace.in_own_thread(lambda: udp_socket_in(rig.world, str(WORLD_IPV4), 4001))
    outbox.sendto(b"over IPv4", ("203.0.113.5", 4001))
    outbox.close()
    frame = await guest.frame()
    assert frame[:6].hex(":") == guest.vm.mac
    assert frame[12:14] == b"\x08\x00"
    assert frame.endswith(b"over IPv4")


async def test_an_address_that_nobody_has_is_unreachable(rig: FabricRig) -> None:
    """It does not go back out by the default route; and the host says so itself."""
    asker = await namespace.in_own_thread(lambda: udp_socket_in(rig.world, str(WORLD), 4001))
    try:
        asker.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
        asker.connect((str(PREFIX[0x99999]), 4001))
        asker.send(b"anybody there?")
        with pytest.raises(OSError, match=r"unreachable|No route"):
            async with asyncio.timeout(2):
                await asyncio.get_running_loop().sock_recv(asker, 10)
    finally:
        asker.close()


async def test_rules_stand_before_the_tap_is_open(rig: FabricRig) -> None:
    """In the fabric it comes closed; what refuses it leaves it so."""
    rules = standing_rules(rig)
    rules.refuses.add("add")
    guest = await rig.guest(attach=False)
    with pytest.raises(NetworkError, match="refused as told"):
        await rig.fabric.attach(guest.nic, guest.vm)
    assert "state DOWN" in await rig.inside("ip", "link", "show", guest.vm.tap)
    with pytest.raises(OSError, match="Input/output"):
        guest.send(guest.udp(WORLD, 1, b""))
    assert guest.vm.tap not in rig.fabric.attached
    rules.refuses.clear()
    await rig.fabric.detach(guest.vm.tap, guest.owner)
    assert await rig.fabric.taps() == {}


async def test_what_goes_leaves_nothing(rig: FabricRig) -> None:
    """Rules first; together where many go; and again is no mistake."""
    guests = [await rig.guest() for _ in range(5)]
    assert await rig.fabric.taps() == {guest.vm.tap: guest.owner for guest in guests}
    counters = [rig.fabric.read(guest.vm.index) for guest in guests]
    assert counters == [(0, 0)] * 5
    for _ in range(2):
        await asyncio.gather(*(rig.fabric.detach(g.vm.tap, g.owner) for g in guests))
    assert await rig.fabric.taps() == {}
    assert standing_rules(rig).standing == {}
    assert await rig.fabric.reconcile() == Repairs({})
    assert "vm" not in await rig.inside("ip", "-6", "route")


async def test_a_later_incarnation_takes_the_place_of_an_earlier_one(rig: FabricRig) -> None:
    """Whose removal was cut off; and a removal that comes late does not touch it."""
    first = await rig.guest()
    second = await rig.start(replace(first.vm, incarnation=2))
    await rig.fabric.detach(first.vm.tap, first.owner)
    assert await rig.fabric.taps() == {second.vm.tap: second.owner}
    assert await arrives(rig, second) == b"hello"


async def test_a_foreign_link_of_the_name_is_left_alone(rig: FabricRig) -> None:
    """The VM is not connected, and nothing of the other is touched."""
    guest = await rig.guest(attach=False)
    await rig.inside("ip", "tuntap", "add", guest.vm.tap, "mode", "tap")
    with pytest.raises(NetworkError, match="foreign link"):
        await rig.fabric.attach(guest.nic, guest.vm)
    await rig.fabric.detach(guest.vm.tap, guest.owner)
    await rig.fabric.reconcile()
    assert guest.vm.tap in await rig.inside("ip", "link")


async def test_the_next_agent_finds_everything_as_it_was(rig: FabricRig) -> None:
    """Traffic flows while there is none, and it has nothing to repair."""
    guests = [await rig.guest() for _ in range(3)]
    await rig.fabric.close()
    assert await arrives(rig, guests[0]) == b"hello"
    fabric = await rig.again()
    assert await fabric.reconcile() == Repairs({})
    assert (await fabric.taps()).keys() == {guest.vm.tap for guest in guests}
    sent = len(guests[0].udp(WORLD, 4000, b"hello"))
    assert fabric.read(guests[0].vm.index) == (0, sent)


async def routed(rig: FabricRig) -> list[str]:
    """Routes and neighbours as iproute2 tells them, in any order.

    Without what the kernel finds out in its own time: whether somebody has opened the tap.
    """
    told = await rig.inside("sh", "-c", "ip -6 route; ip route; ip neigh show nud permanent")
    told += await rig.inside("ip", "-6", "neigh", "show", "nud", "permanent")
    return sorted(word for word in told.split() if word != "linkdown")


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        ("ip link set {tap} down", "link"),
        ("ip link set {tap} mtu 1300", "link"),
        ("ip -6 addr flush dev {tap}", "address"),
        ("ip -6 neigh flush dev {tap} nud permanent", "neighbour"),
        ("ip -6 route flush dev {tap} proto 220", "route"),
        ("ip -6 route del default", "route"),
        ("ip -6 route del unreachable 2001:db8:1::/56", "route"),
        ("ip -6 addr del 2001:db8:1::1/128 dev lo", "address"),
        ("ip -6 route add 2001:db8:1::77/128 via fe80::9 dev {tap} proto 220", "route"),
        ("ip -6 neigh add fe80::9 lladdr 06:00:00:00:00:09 dev {tap} nud permanent", "neighbour"),
        ("ip addr del 169.254.0.1/32 dev lo", "address"),
        (
            "ip neigh replace 203.0.113.5 lladdr 06:00:00:00:00:09 dev {tap} nud permanent",
            "neighbour",
        ),
        ("ip -6 neigh replace {ll} lladdr 06:00:00:00:00:09 dev {tap} nud permanent", "neighbour"),
        ("ip -6 route replace {to} via fe80::9 dev {tap} proto 220", "route"),
    ],
)
async def test_damage_is_repaired_and_counted(rig: FabricRig, damage: str, kind: str) -> None:
    """And only that: a second look finds nothing."""
    guest = await rig.guest(ipv4=IPv4Address("203.0.113.5"))
    before = await routed(rig)
    vm = guest.vm
    words = {"tap": vm.tap, "ll": vm.link_local, "to": vm.addresses[0]}
    await rig.inside("sh", "-c", damage.format(**words))
    repairs = await rig.fabric.reconcile()
    assert kind in repairs.kinds
    assert await rig.fabric.reconcile() == Repairs({})
    assert await routed(rig) == before
    assert await arrives(rig, guest) == b"hello"


async def test_damage_outside_is_repaired(rig: FabricRig) -> None:
    """The routes to the fabric are the agent's, too."""
    guest = await rig.guest()
    await rig.outer("ip", "-6", "route", "del", str(PREFIX))
    assert (await rig.fabric.reconcile()).kinds == {"route": 1}
    assert (await comes_back(rig, guest)).endswith(b"hi there")


async def test_orphans_go_and_foreign_things_stay(rig: FabricRig) -> None:
    """What carries our alias and has no VM is removed; all else is somebody's."""
    guest = await rig.guest()
    left = await rig.guest()
    await rig.inside("ip", "link", "add", "foreign0", "type", "veth", "peer", "name", "foreign1")
    await rig.inside("ip", "-6", "route", "add", "unreachable", "2001:db8:77::/48")
    await rig.fabric.close()
    forgotten = rig.fabric.attached
    assert isinstance(forgotten, dict)
    del forgotten[left.vm.tap]
    fabric = await rig.again()
    assert (await fabric.reconcile()).kinds["orphan"] == 1
    assert (await fabric.taps()).keys() == {guest.vm.tap}
    assert "foreign0" in await rig.inside("ip", "link")
    assert "2001:db8:77::/48" in await rig.inside("ip", "-6", "route")


async def test_a_tap_that_somebody_takes_away_is_told_and_billed_to_the_end(rig: FabricRig) -> None:
    """Its last counters come with the kernel's word that it is gone."""
    guest, other = await rig.guest(), await rig.guest()
    frame = guest.udp(WORLD, 4000, b"hello")
    guest.send(frame)
    await rig.inside("ip", "link", "del", guest.vm.tap)
    assert rig.fabric.read(guest.vm.index) == (0, len(frame))
    with rig.fabric.at_once():
        assert rig.fabric.read(guest.vm.index) == (0, len(frame))
        assert rig.fabric.read(other.vm.index) == (0, 0)
    repairs = await rig.fabric.reconcile()
    assert repairs.lost == {guest.vm.tap}
    assert await arrives(rig, other) == b"hello"


async def test_packets_are_as_large_as_the_smaller_of_wish_and_host_allows(rig: FabricRig) -> None:
    """The host's limit is the uplink's."""
    small, large = await rig.guest(mtu=1300), await rig.guest(mtu=9000)
    assert "mtu 1300" in await rig.inside("ip", "link", "show", small.vm.tap)
    assert "mtu 1500" in await rig.inside("ip", "link", "show", large.vm.tap)


async def test_the_loss_of_the_namespace_is_made_good_for_new_vms(rig: FabricRig) -> None:
    """As after a reboot of the host: the fabric is made anew."""
    guest = await rig.guest()
    await rig.fabric.close()
    namespace.remove(rig.layout.netns)
    await taps.destroy(guest.nic)
    rig.fabric.attached.pop(guest.vm.tap)  # type: ignore[attr-defined]
    await rig.again()
    assert await arrives(rig, await rig.guest()) == b"hello"


async def test_an_interface_of_the_host_can_be_the_uplink() -> None:
    """It moves into the fabric, and the route goes to whom the settings name."""
    async with fabric_rig() as rig:
        await rig.outer("ip", "link", "add", "eth7", "type", "veth", "peer", "name", "router")
        await rig.outer("ip", "addr", "add", "fe80::77/64", "dev", "router", "nodad")
        await rig.outer("ip", "link", "set", "router", "up")
        layout = replace(
            rig.layout, identity=new_id().hex[-8:], interface="eth7", next_hop="fe80::77"
        )
        fabric = Fabric(layout, NotedRules(), rig.outside)
        try:
            await fabric.open()
            vm = (await rig.guest(attach=False)).vm
            nic = rig.guests[-1].nic
            await fabric.attach(nic, vm)
            assert await arrives(rig, rig.guests[-1]) == b"hello"
            assert await fabric.reconcile() == Repairs({})
            await fabric.detach(vm.tap, Owner(layout.identity, vm.vm_id, 1))
        finally:
            await fabric.close()
            namespace.remove(layout.netns)


async def test_an_interface_that_is_not_there_is_named() -> None:
    """And nothing is run open instead."""
    async with fabric_rig() as rig:
        layout = replace(rig.layout, identity=new_id().hex[-8:], interface="eth9")
        fabric = Fabric(layout, NotedRules(), rig.outside)
        try:
            with pytest.raises(NetworkError, match="no interface eth9"):
                await fabric.open()
        finally:
            await fabric.close()
            namespace.remove(layout.netns)


def test_the_prefix_of_the_tests_is_of_documentation() -> None:
    """RFC 3849: nobody is ever reached by mistake."""
    assert PREFIX.subnet_of(IPv6Network("2001:db8::/32"))
