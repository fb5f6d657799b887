"""The suite's VMs on the agent's own fabric: its links, routes and rules, taps like a VMM's."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from functools import partial

from pyroute2 import IPRoute

from schemas.ids import new_id
from tests.network.cases.base import UNATTACHED, VMS, Case
from tests.network.suite import SENDER, OneCpu, Sender, Suite
from tests.support import fabric as small
from tests.support.fabric import PLAN, UPLINK_MAC, WAN_MAC, Guest, inside
from vm_agent import namespace
from vm_agent.drivers.abc import Nic
from vm_agent.network import taps
from vm_agent.network.attachment import Attachment
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


Attach = Callable[[Nic], Awaitable[None]]
Start = Callable[[small.Fabric, Attach], Awaitable[Sender]]
"""Starts a guest on an interface that it has attached meanwhile, once its VMM has opened it."""


@asynccontextmanager
async def suite(start: Start | None = None, *, stack: bool = False) -> AsyncIterator[Suite]:
    """A suite on a fabric that is removed afterwards.

    Args:
        start: Makes the VM that sends; without it, it is a descriptor like the others.
        stack: That VM has a stack of its own.
    """
    tag = new_id().hex[-8:]
    outside = f"decisec-test-world-{tag}"
    layout = layout_of(tag)
    with ExitStack() as ends:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(namespace.make, outside).result()
        ends.callback(namespace.remove, outside)
        ends.callback(namespace.remove, layout.netns)
        async with suite_on(layout, outside, start, stack=stack) as made:
            yield made


def layout_of(identity: str) -> Layout:
    """What connects the suite's VMs."""
    return Layout(
        identity=identity,
        ranges=Ranges(PLAN.prefix, (PLAN.prefix_v4,) if PLAN.prefix_v4 else ()),
    )


@asynccontextmanager
async def suite_on(
    layout: Layout, outside: str, start: Start | None = None, *, stack: bool = False
) -> AsyncIterator[Suite]:
    """A suite on a fabric that may have been there before.

    Args:
        layout: What it is made of.
        outside: Namespace that its way out leads to; nobody routes there.
        start: As in `suite`.
        stack: As in `suite`.
    """
    rules = FilterRules(layout)
    async with AsyncExitStack() as ends:
        fabric = Fabric(layout, rules, outside, PLAN.protected)
        ends.push_async_callback(fabric.close)
        await fabric.open()
        await fabric.reconcile()
        inside(layout.netns, lambda: _rename_mac(UPLINK, UPLINK_MAC))
        inside(outside, lambda: _rename_mac(layout.outer, WAN_MAC))
        wire = inside(outside, lambda: small.listen(layout.outer))
        ends.callback(wire.close)
        service = inside(layout.netns, small.serve)
        ends.callback(service.close)
        place = small.Fabric(layout.netns, outside, wire, service)
        sender: Sender | None = None
        for name, vm in VMS.items():
            if name in UNATTACHED:
                continue
            if name == SENDER and start is not None:
                sender = await start(place, partial(_attach, fabric, vm))
                continue
            nic = await taps.create(taps.nic_of(vm.vm_id, 1))
            ends.push_async_callback(taps.destroy, nic)
            descriptor = inside(nic.netns, lambda nic=nic: small.open_tap(nic.tap))  # type: ignore[misc] # bound
            ends.callback(os.close, descriptor)
            await fabric.attach(nic, vm)
            place.guests[vm.slot] = Guest(vm, descriptor)
        # Not before: what is started here would be held to the same CPU.
        ends.enter_context(OneCpu())
        nft = Nft(layout.netns)
        ends.push_async_callback(nft.close)
        made = Suite(place, nft, rules._filter, sender, stack=stack)
        await made.prepare()
        yield made


async def _attach(fabric: Fabric, vm: Attachment, nic: Nic) -> None:
    await fabric.attach(nic, vm)


def _rename_mac(interface: str, address: str) -> None:
    with IPRoute() as route:
        route.link("set", index=socket.if_nametoindex(interface), address=address)
