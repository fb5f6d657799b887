"""The fabric with its real packet filter: who talks to whom, and that both stay together."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv6Address

import pytest

from tests.support.wires import (
    HOST,
    WORLD,
    FabricRig,
    Guest,
    fabric_rig,
    nft_in,
    udp_socket_in,
)
from vm_agent import namespace
from vm_agent.network import taps
from vm_agent.network.advertising import advertisement
from vm_agent.network.filtering import FilterRules
from vm_agent.network.mending import Repairs
from vm_agent.network.moving import move
from vm_agent.network.nft import NftMissingError, NftSession
from vm_agent.network.taps import NetworkError


def _missing() -> str | None:
    if reason := taps.available():
        return reason
    try:
        NftSession().close()
    except NftMissingError as error:
        return str(error)
    return None


pytestmark = pytest.mark.skipif(_missing() is not None, reason=_missing() or "it is all there")

_PORT = 4000


@pytest.fixture
async def rig() -> AsyncIterator[FabricRig]:
    """A fabric for one test."""
    async with fabric_rig(FilterRules) as made:
        yield made


async def hears(netns: str, address: IPv6Address, guest: Guest) -> bool:
    """Whether somebody in a namespace gets what a guest sends."""
    inbox = await namespace.in_own_thread(lambda: udp_socket_in(netns, str(address), _PORT))
    try:
        guest.send(guest.udp(address, _PORT, b"hello"))
        async with asyncio.timeout(0.5):
            return await asyncio.get_running_loop().sock_recv(inbox, 100) == b"hello"
    except TimeoutError:
        return False
    finally:
        inbox.close()


async def reached(rig: FabricRig, guest: Guest) -> bool:
    """Whether a guest gets what the world sends."""
    outbox = await namespace.in_own_thread(lambda: udp_socket_in(rig.world, str(WORLD), _PORT))
    outbox.sendto(b"hi", (str(guest.vm.addresses[0].network_address), _PORT))
    outbox.close()
    return await gets(guest)


async def gets(guest: Guest) -> bool:
    """Whether a frame comes."""
    try:
        await guest.frame(within_s=0.5)
    except TimeoutError:
        return False
    return True


async def test_a_vm_reaches_the_world_and_not_the_host(rig: FabricRig) -> None:
    """Nor does the host's own stack say anything to it; and what was dropped has a reason."""
    guest = await rig.guest()
    assert await hears(rig.world, WORLD, guest)
    assert await reached(rig, guest)
    assert not await hears(rig.outside, HOST, guest)
    drops = await rig.fabric.drops()
    assert drops[guest.vm.tap]["destination"] == 1
    sent = len(guest.udp(WORLD, _PORT, b"hello"))
    assert rig.fabric.read(guest.vm.index) == (guest.received_bytes, 2 * sent)


async def test_a_new_address_of_the_host_is_out_of_reach_too(rig: FabricRig) -> None:
    """From the next comparison on."""
    guest = await rig.guest()
    await rig.outer("ip", "addr", "add", "2001:db8:ffff::101/128", "dev", "lo", "nodad")
    assert await hears(rig.outside, IPv6Address("2001:db8:ffff::101"), guest)
    assert (await rig.fabric.reconcile()).kinds == {"rules": 1}
    assert not await hears(rig.outside, IPv6Address("2001:db8:ffff::101"), guest)
    assert await rig.fabric.reconcile() == Repairs({})


async def test_a_customers_vms_talk_and_others_do_not(rig: FabricRig) -> None:
    """On one host, in both directions."""
    ours = [await rig.guest(), await rig.guest()]
    theirs = await rig.guest(customer_id="globex", tenant=(1 << 20) + 1)
    address = ours[1].vm.addresses[0].network_address
    ours[0].send(ours[0].udp(address, _PORT, b"hello"))
    assert await gets(ours[1])
    theirs.send(theirs.udp(address, _PORT, b"hello"))
    assert not await gets(ours[1])
    ours[0].send(ours[0].udp(theirs.vm.addresses[0].network_address, _PORT, b"hello"))
    assert not await gets(theirs)


async def test_a_borrowed_source_goes_nowhere(rig: FabricRig) -> None:
    """The address of another VM, of the same customer."""
    one, other = await rig.guest(), await rig.guest()
    thief = replace(one.vm, addresses=other.vm.addresses)
    frame = Guest(one.nic, thief, one.tap, one.identity).udp(WORLD, _PORT, b"hello")
    one.send(frame)
    drops = await rig.fabric.drops()
    assert drops[one.vm.tap]["source"] == 1


async def test_a_quarantined_vm_is_cut_off_and_comes_back(rig: FabricRig) -> None:
    """At once, in both directions, and over a restart of the agent."""
    guest = await rig.guest()
    await rig.fabric.change(replace(guest.vm, quarantined=True))
    assert not await hears(rig.world, WORLD, guest)
    assert not await reached(rig, guest)
    fabric = await rig.again()
    assert not await hears(rig.world, WORLD, guest)
    assert await fabric.reconcile() == Repairs({})
    await fabric.change(guest.vm)
    assert await hears(rig.world, WORLD, guest)
    assert await reached(rig, guest)


async def test_a_restart_of_the_agent_changes_nothing(rig: FabricRig) -> None:
    """While there is none the rules hold, and the next one finds them as they should be."""
    guest = await rig.guest()
    await rig.fabric.close()
    assert await hears(rig.world, WORLD, guest)
    assert not await hears(rig.outside, HOST, guest)
    fabric = await rig.again()
    assert await fabric.reconcile() == Repairs({})


async def test_rules_that_somebody_removed_come_back(rig: FabricRig) -> None:
    """Until then the VM has no network, rather than one without rules."""
    guest = await rig.guest()
    await nft_in(rig.layout.netns, f"delete chain netdev decisec {guest.vm.tap}")
    assert not await hears(rig.world, WORLD, guest)
    assert (await rig.fabric.reconcile()).kinds == {"rules": 1}
    assert await hears(rig.world, WORLD, guest)


async def test_an_agent_that_dies_amid_attaching_leaves_it_shut(rig: FabricRig) -> None:
    """After each step but the last; what it leaves is removed, and nothing gets through."""

    async def moved(guest: Guest) -> None:
        link, netns = rig.fabric.layout.tap(guest.vm), rig.fabric.layout.netns
        await namespace.in_own_thread(lambda: move(guest.nic, link, guest.vm.index, netns))

    async def ruled(guest: Guest) -> None:
        await moved(guest)
        await rig.rules.add(guest.vm)

    for step in (moved, ruled):
        guest = await rig.guest(attach=False)
        await step(guest)
        with pytest.raises(OSError, match="Input/output"):
            guest.send(guest.udp(WORLD, _PORT, b"hello"))
        fabric = await rig.again()
        await fabric.detach(guest.vm.tap, guest.owner)
        assert await fabric.taps() == {}
        repairs = await fabric.reconcile()
        assert repairs == Repairs({})


async def test_without_the_library_nothing_is_attached(rig: FabricRig) -> None:
    """A fabric whose rules do not stand takes no VM."""
    await nft_in(rig.layout.netns, "flush ruleset")
    guest = await rig.guest(attach=False)
    with pytest.raises(NetworkError):
        await rig.fabric.attach(guest.nic, guest.vm)
    assert "state DOWN" in await rig.inside("ip", "link", "show", guest.vm.tap)


async def test_many_come_and_go_at_once(rig: FabricRig) -> None:
    """And are compared meanwhile; nothing of them stays."""
    guests = [await rig.guest(attach=False) for _ in range(12)]
    async with asyncio.TaskGroup() as group:
        for guest in guests:
            group.create_task(rig.fabric.attach(guest.nic, guest.vm))
        group.create_task(rig.fabric.reconcile())
    assert await rig.fabric.reconcile() == Repairs({})
    for guest in guests[::3]:
        assert await hears(rig.world, WORLD, guest)
    async with asyncio.TaskGroup() as group:
        for guest in guests:
            group.create_task(rig.fabric.detach(guest.vm.tap, guest.owner))
        group.create_task(rig.fabric.reconcile())
    assert await rig.fabric.taps() == {}
    assert await rig.fabric.reconcile() == Repairs({})


async def test_a_guest_that_asks_is_told_all_it_needs(rig: FabricRig) -> None:
    """Its prefix, not on the link; the gateway; MTU. Once a second at most."""
    guest = await rig.guest(mtu=1400)
    guest.send(guest.solicitation())
    told = await guest.advertised()
    assert (
        told
        == advertisement(guest.vm.addresses[0], 1400, ())[:2]
        + told[2:4]
        + (advertisement(guest.vm.addresses[0], 1400, ())[4:])
    )
    guest.send(guest.solicitation())
    with pytest.raises(TimeoutError):
        await guest.advertised(within_s=0.3)
    other = await rig.guest()
    other.send(other.solicitation(hops=254))
    with pytest.raises(TimeoutError):
        await other.advertised(within_s=0.3)
    other.send(other.solicitation())
    assert other.vm.addresses[0].network_address.packed[:8] in await other.advertised()


def test_interfaces_of_the_machine_are_as_before() -> None:
    """The tests' fabrics are all in namespaces of their own."""
    assert not [name for _, name in socket.if_nameindex() if name.startswith("dcf")]
