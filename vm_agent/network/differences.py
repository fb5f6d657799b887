"""What of one VM's links, addresses, neighbours and routes is not as it should be, in words. Pure.

The same values are compared as in `mending`, and nothing is put right.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from vm_agent.network.attachment import Attachment
from vm_agent.network.items import Address, Item, Link, Neighbour, Route, Standing
from vm_agent.network.layout import Layout
from vm_agent.network.shaping import Limit


@dataclass(frozen=True, slots=True)
class Differences:
    """What is amiss; all are empty where nothing is.

    Attributes:
        tap: About the VM's interface.
        addresses: About what stands for the VM beside it.
        fabric: About what all VMs share, in the fabric.
    """

    tap: tuple[str, ...] = field(default_factory=tuple)
    addresses: tuple[str, ...] = field(default_factory=tuple)
    fabric: tuple[str, ...] = field(default_factory=tuple)


def differences(layout: Layout, vm: Attachment, standing: Standing) -> Differences:
    """Compare what stands in the fabric with what should, for one VM."""
    link = next((one for one in standing.links.values() if one.name == vm.tap), None)
    wanted = layout.tap(vm)
    tap = tuple(_of_link(link, wanted)) if link is not None else (f"there is no {vm.tap}",)
    return Differences(
        tap=tap,
        addresses=missing(layout.behind(vm), standing),
        fabric=missing(layout.inside(), standing),
    )


def missing(wanted: Iterable[Item], standing: Standing) -> tuple[str, ...]:
    """What does not stand, in words and in the order of an alphabet."""
    return tuple(sorted(_absent(item) for item in set(wanted) - standing.items))


def _of_link(link: Link, wanted: Link) -> Iterator[str]:
    if link.alias != wanted.alias:
        yield f"{link.name} is another incarnation's"
    if not link.up:
        yield f"{link.name} is closed"
    if link.mtu != wanted.mtu:
        yield f"its MTU is {link.mtu} bytes instead of {wanted.mtu}"
    if link.mac != wanted.mac:
        yield f"its MAC address is {link.mac} instead of {wanted.mac}"


def _absent(item: Item) -> str:
    match item:
        case Address(link, address):
            return f"{link} has no address {address}"
        case Neighbour(link, address, mac):
            return f"{address} is not known at {mac} on {link}"
        case Route(to, _, link):
            return f"there is no route to {to}" + (f" by {link}" if link else "")
        case Limit(link):
            return f"{link} is not held to its limit"
        case Link(name):
            return f"there is no {name}"
