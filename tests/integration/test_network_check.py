"""Whether a VM can be reached: proven where all is in order, and named where it is not."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import pytest

from schemas.network_checks import NetworkFinding, Outcome, Probed
from tests.support.connected_agent import lack
from tests.support.live_guest import LiveGuest, live_guest
from tests.support.wires import PREFIX, FabricRig, fabric_rig
from vm_agent import namespace
from vm_agent.network.attachment import Port, interface_id
from vm_agent.network.filtering import FilterRules
from vm_agent.network.lease import mac_of
from vm_agent.network.nft import Nft
from vm_agent.network.path_check import Facts
from vm_agent.network.probes import PROBER, PROBER_IPV4
from vm_agent.network.reasons import Reason
from vm_agent.network.verdicts import findings, proven, stopped, summary

pytestmark = pytest.mark.skipif(lack() is not None, reason=lack() or "nothing is missing")

MTU = 1400
IPV4 = IPv4Address("203.0.113.5")
SSH = Port(protocol="tcp", first=22, last=22)


@dataclass(frozen=True)
class Found:
    """What was found of a VM."""

    facts: Facts

    @property
    def all(self) -> dict[Probed, NetworkFinding]:
        """By what was looked at."""
        return {one.probed: one for one in findings(self.facts)}

    @property
    def wrong(self) -> set[Probed]:
        """What is not as it should be."""
        return {probed for probed, one in self.all.items() if one.outcome is Outcome.WRONG}

    @property
    def proven(self) -> bool:
        """Whether the path is."""
        return proven(self.facts, findings(self.facts))

    @property
    def summary(self) -> str:
        """In a sentence."""
        return summary(self.facts, findings(self.facts))

    @property
    def stopped(self) -> dict[str, int]:
        """What the rules dropped meanwhile, but for what its stack reports when it likes."""
        reports = Reason.MLD.label
        return {one.reason: one.packets for one in stopped(self.facts) if one.reason != reports}


@dataclass(frozen=True)
class Place:
    """A fabric with a VM that lives."""

    rig: FabricRig
    live: LiveGuest

    async def check(self) -> Found:
        """Look at it."""
        return Found(await self.rig.fabric.examine(self.live.guest.vm.tap))

    async def become(self, **changes: Any) -> None:
        """Let other rules hold for it."""
        await self.rig.fabric.change(replace(self.live.guest.vm, **changes))

    @property
    def address(self) -> IPv6Address:
        """The VM's."""
        return self.live.guest.vm.addresses[0].network_address


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    """A VM in order, with IPv4, whose guest has taken its addresses."""
    async with fabric_rig(FilterRules, mtu=MTU) as rig:
        eui = PREFIX.network_address + int(interface_id(mac_of(0xF000_0001)))
        guest = await rig.guest(addresses=(IPv6Network(eui),), ipv4=IPV4)
        async with live_guest(guest) as live:
            await live.has_address()
            await live.run("ip", "addr", "add", f"{IPV4}/32", "dev", "eth0")
            await live.run("ip", "route", "add", "169.254.0.1", "dev", "eth0")
            await live.run("ip", "route", "add", "default", "via", "169.254.0.1")
            yield Place(rig, live)


async def test_the_path_of_a_vm_in_order_is_proven(place: Place) -> None:
    """From outside through the uplink to the guest and back, over both, at full size."""
    found = await place.check()
    assert (found.proven, found.wrong, found.stopped) == (True, set(), {})
    assert found.all.keys() == set(Probed) - {Probed.OPEN_PORT, Probed.CLOSED_PORT}
    answered = [one for one in found.all.values() if one.round_trip_us is not None]
    assert len(answered) == 6
    assert f"{MTU} bytes through the uplink" in found.all[Probed.MTU].detail
    assert found.summary == "the path is proven: through the uplink to the guest, and back"
    assert {one.times for one in found.facts.sent} == {1}


async def test_nothing_is_changed_and_no_answer_gets_further(place: Place) -> None:
    """The host's stack, which would forward it, gets none of the answers."""
    await place.rig.fabric.reconcile()
    before = await forwarded(place.rig)
    assert (await place.check()).proven
    assert await forwarded(place.rig) == before
    assert not (await place.rig.fabric.reconcile()).kinds
    for prober in (PROBER, PROBER_IPV4):
        assert str(prober) not in await place.rig.outer("ip", "-o", "addr")


async def forwarded(rig: FabricRig) -> dict[str, str]:
    """What the host has forwarded or refused so far: its counters of IPv6."""

    def read() -> dict[str, str]:
        namespace.enter(rig.outside)
        lines = Path("/proc/thread-self/net/snmp6").read_text().splitlines()
        return dict(line.split() for line in lines)

    counters = await namespace.in_own_thread(read)
    names = ("Ip6OutForwDatagrams", "Ip6InNoRoutes", "Ip6InAddrErrors")
    return {name: counters[name] for name in names}


async def test_a_closed_vm_is_reached_where_it_is_open_only(place: Place) -> None:
    """What is stopped is stopped for that reason, which is how it should be."""
    await place.become(open_inbound=False, ports=(SSH,))
    found = await place.check()
    assert (found.proven, found.wrong) == (True, set())
    assert found.stopped == {Reason.INBOUND.label: 3}
    assert "nothing listens" in found.all[Probed.OPEN_PORT].detail
    closed = found.all[Probed.CLOSED_PORT]
    assert closed.detail == "tcp/65535 is stopped, as it should be: inbound"
    assert found.all[Probed.OUTSIDE].outcome is Outcome.OK
    assert found.summary.startswith("the path is proven: through the uplink")

    await place.become(open_inbound=False)
    found = await place.check()
    assert (found.proven, found.wrong) == (True, set())
    assert found.summary.endswith("nobody outside may begin to talk to it")


async def test_a_service_that_listens_takes_a_connection_and_is_let_go(place: Place) -> None:
    """The guest's half of the connection ends at once."""
    await place.become(open_inbound=False, ports=(SSH,))

    def listen() -> socket.socket:
        namespace.enter(place.live.netns)
        return socket.create_server(("::", 22), family=socket.AF_INET6)

    with await namespace.in_own_thread(listen):
        found = await place.check()
        assert found.all[Probed.OPEN_PORT].detail.endswith("the guest takes a connection")
        async with asyncio.timeout(5):
            while await place.live.run("ss", "-Htn", "state", "syn-recv"):
                await asyncio.sleep(0.01)


async def test_nothing_passes_to_a_vm_that_is_cut_off(place: Place) -> None:
    """Each probe is dropped for that reason, and the path is not proven."""
    await place.become(quarantined=True)
    found = await place.check()
    assert (found.proven, found.wrong) == (False, set())
    assert found.summary == "the operator has cut it off from the network: nothing passes"
    # What the guest says of its own accord is among it.
    assert found.stopped.keys() == {Reason.QUARANTINE.label}
    assert found.stopped[Reason.QUARANTINE.label] >= len(found.facts.sent)
    assert all(one.answer is None for one in found.facts.sent)


async def test_what_is_broken_is_named(place: Place) -> None:
    """One thing at a time, mended in between."""
    fabric, tap = place.rig.fabric, place.live.guest.vm.tap
    over_ipv6 = {Probed.GATEWAY, Probed.OUTSIDE, Probed.MTU}

    await place.rig.inside("ip", "-6", "route", "del", str(place.address))
    found = await place.check()
    assert found.wrong == {Probed.ADDRESSES, *over_ipv6}
    assert f"no route to {place.address}/128" in found.all[Probed.ADDRESSES].detail
    assert "unreachable, says" in found.all[Probed.OUTSIDE].detail
    assert await mended(place, route=1)

    nft = Nft(fabric.layout.netns)
    try:
        key = f'"{tap}" . {place.address}'
        await nft.run(f"delete element inet decisec source6 {{ {key} }}")
        found = await place.check()
        assert found.wrong == {Probed.RULES, Probed.NEIGHBOUR, *over_ipv6}
        assert f"source6 . {tap} . {place.address}" in found.all[Probed.RULES].detail
        assert "the rules dropped meanwhile: source" in found.all[Probed.OUTSIDE].detail
        assert found.stopped.keys() == {Reason.SOURCE.label}
        assert await mended(place, rules=1)

        await nft.run("flush chain inet decisec forward")
        found = await place.check()
        assert Probed.RULES in found.wrong
        assert "base rules" in found.all[Probed.RULES].detail
        assert {Probed.OUTSIDE, Probed.OUTSIDE_IPV4} < found.wrong
        assert await mended(place, rules=1)
    finally:
        await nft.close()

    await place.rig.inside("ip", "link", "set", tap, "mtu", "1300")
    found = await place.check()
    assert found.wrong == {Probed.TAP, Probed.MTU}
    assert found.all[Probed.TAP].detail == "its MTU is 1300 bytes instead of 1400"
    assert await mended(place, link=1)

    await place.rig.outer("ip", "-6", "route", "del", str(PREFIX))
    found = await place.check()
    assert found.wrong == {Probed.HOST}
    assert str(PREFIX) not in found.all[Probed.HOST].detail
    assert await mended(place, route=1)

    await place.live.run("ip", "-6", "addr", "del", f"{place.address}/64", "dev", "eth0")
    found = await place.check()
    assert found.wrong == {Probed.NEIGHBOUR, *over_ipv6}
    assert found.all[Probed.NEIGHBOUR].detail.endswith("look into the guest")
    assert found.stopped == {}
    assert {one.times for one in found.facts.sent if one.answer is None} == {3}


async def test_a_vm_whose_tap_or_way_out_is_gone_is_told_so(place: Place) -> None:
    """What is not there is no error of whoever asks; and nothing is sent to what is gone."""
    fabric = place.rig.fabric
    await place.rig.outer("ip", "link", "del", fabric.layout.outer)
    found = await place.check()
    assert (found.proven, found.wrong) == (False, {Probed.HOST})
    assert Probed.OUTSIDE not in found.all
    await place.rig.inside("ip", "link", "del", place.live.guest.vm.tap)
    found = await place.check()
    assert {Probed.TAP, Probed.ADDRESSES, Probed.HOST} <= found.wrong
    assert found.facts.sent == ()
    assert not found.proven


async def mended(place: Place, **kinds: int) -> bool:
    """Whether a comparison puts just this right, and the path is proven then."""
    repairs = await place.rig.fabric.reconcile()
    assert repairs.kinds == kinds
    return (await place.check()).proven
