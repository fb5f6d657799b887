"""The suite's VMs on the agent's own fabric: its links, routes and rules, taps like a VMM's."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager

from pyroute2 import IPRoute

from schemas.ids import new_id
from tests.network.cases.base import UNATTACHED, VMS, Case
from tests.network.suite import OneCpu, Suite
from tests.support import fabric as small
from tests.support.fabric import PLAN, UPLINK_MAC, WAN_MAC, Guest, inside
from vm_agent import namespace
from vm_agent.network import taps
from vm_agent.network.fabric import Fabric
from vm_agent.network.filtering import FilterRules
from vm_agent.network.layout import UPLINK, Layout
from vm_agent.network.leases import Ranges
from vm_agent.network.nft import Nft

_ELSEWHERE = ("uplink's", "name server", "thousand questions", "Taps without rules")
"""Cases about what this fabric has not: global addresses of its uplink, services, bare taps."""


def is_about_it(case: Case) -> bool:
    """Whether a case says something about the agent's fabric."""
    return not any(word in f"{case.category} {case.name}" for word in _ELSEWHERE)


@asynccontextmanager
async def suite() -> AsyncIterator[Suite]:
    """A suite on a fabric that is removed afterwards."""
    tag = new_id().hex[-8:]
    outside = f"decisec-test-world-{tag}"
    layout = layout_of(tag)
    with ExitStack() as stack:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(namespace.make, outside).result()
        stack.callback(namespace.remove, outside)
        stack.callback(namespace.remove, layout.netns)
        async with suite_on(layout, outside) as made:
            yield made


def layout_of(identity: str) -> Layout:
    """What connects the suite's VMs."""
    return Layout(
        identity=identity,
        ranges=Ranges(PLAN.prefix, (PLAN.prefix_v4,) if PLAN.prefix_v4 else ()),
    )


@asynccontextmanager
async def suite_on(layout: Layout, outside: str) -> AsyncIterator[Suite]:
    """A suite on a fabric that may have been there before, whose VMs are removed afterwards.

    Args:
        layout: What it is made of.
        outside: Namespace that its way out leads to; nobody routes there.
    """
    rules = FilterRules(layout)
    async with AsyncExitStack() as stack:
        stack.enter_context(OneCpu())
        fabric = Fabric(layout, rules, outside, PLAN.protected)
        stack.push_async_callback(fabric.close)
        await fabric.open()
        await fabric.reconcile()
        inside(layout.netns, lambda: _rename_mac(UPLINK, UPLINK_MAC))
        inside(outside, lambda: _rename_mac(layout.outer, WAN_MAC))
        wire = inside(outside, lambda: small.listen(layout.outer))
        stack.callback(wire.close)
        service = inside(layout.netns, small.serve)
        stack.callback(service.close)
        place = small.Fabric(layout.netns, outside, wire, service)
        for name, vm in VMS.items():
            if name in UNATTACHED:
                continue
            nic = await taps.create(vm.vm_id, 1)
            stack.push_async_callback(taps.destroy, nic)
            descriptor = inside(nic.netns, lambda nic=nic: small.open_tap(nic.tap))  # type: ignore[misc] # bound
            stack.callback(os.close, descriptor)
            await fabric.attach(nic, vm)
            place.guests[vm.slot] = Guest(vm, descriptor)
        nft = Nft(layout.netns)
        stack.push_async_callback(nft.close)
        made = Suite(place, nft, rules._filter)
        await made.prepare()
        yield made


def _rename_mac(interface: str, address: str) -> None:
    with IPRoute() as route:
        route.link("set", index=socket.if_nametoindex(interface), address=address)
