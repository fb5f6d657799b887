"""What stands in the fabric against what should.

What is missing is put, what is ours and unwanted is taken, and what is foreign stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vm_agent.network.attachment import Attachment
from vm_agent.network.changes import delete_links, put, take
from vm_agent.network.items import Item, Link, Neighbour, Route, Standing, read_all
from vm_agent.network.layout import Layout, Owner, owner_in
from vm_agent.network.netlink import opened
from vm_agent.network.shaping import Limit


@dataclass(frozen=True, slots=True)
class Repairs:
    """What a comparison has put right.

    Attributes:
        kinds: How many of each kind: `link`, `limit`, `address`, `neighbour`, `route`, `rules`,
            `orphan`.
        lost: Taps that are gone and cannot be brought back while their VMM runs.
    """

    kinds: Mapping[str, int]
    lost: frozenset[str] = frozenset()


def repair(layout: Layout, vms: tuple[Attachment, ...]) -> Repairs:
    """Compare and put right, in the fabric. For a thread that is in there.

    Raises:
        OSError: The kernel refuses.
    """
    with opened() as netlink:
        standing = read_all(netlink)
    there = {link.name: link for link in standing.links.values()}
    lost = frozenset(vm.tap for vm in vms if not _is_its(layout, vm, there.get(vm.tap)))
    kept = [vm for vm in vms if vm.tap not in lost]
    kinds: dict[str, int] = {}
    links = [layout.tap(vm) for vm in kept]
    wrong: list[Item] = [link for link in links if there[link.name] != link]
    wanted = layout.inside().union(*map(layout.behind, kept))
    missing = wanted - standing.items
    put((*wrong, *sorted(missing, key=in_order)))
    if wrong:
        # A link that was closed has lost its routes, perhaps only after they were read.
        put(sorted(wanted, key=in_order))
    unwanted = _unwanted(standing, wanted, {vm.tap for vm in kept})
    take(unwanted)
    for item in (*wrong, *missing, *unwanted):
        _count(kinds, item)
    orphans = _orphans(layout, standing, {vm.tap for vm in kept})
    delete_links(orphans)
    kinds["orphan"] = len(orphans)
    return Repairs(kinds, lost)


def _is_its(layout: Layout, vm: Attachment, link: Link | None) -> bool:
    return link is not None and owner_in(link.alias) == Owner(
        layout.identity, vm.vm_id, vm.incarnation
    )


def _unwanted(standing: Standing, wanted: set[Item], taps: set[str]) -> list[Item]:
    """What only this agent puts in place, and nobody wants: our routes, and more on our taps."""
    extra = standing.items - wanted
    taken = {_place(item) for item in wanted if isinstance(item, Limit | Neighbour)}
    return [
        item
        for item in extra
        if isinstance(item, Route)
        or (isinstance(item, Limit | Neighbour) and item.link in taps and _place(item) not in taken)
    ]


def _place(item: Limit | Neighbour) -> tuple[str, str]:
    """Where there is one at most, so that what is wanted has taken the place of another."""
    return item.link, item.address if isinstance(item, Neighbour) else ""


def _orphans(layout: Layout, standing: Standing, taps: set[str]) -> list[str]:
    found = []
    for link in standing.links.values():
        owner = owner_in(link.alias)
        if owner is not None and owner.identity == layout.identity and link.name not in taps:
            found.append(link.name)
    return found


def in_order(item: Item) -> int:
    """Links first, routes last: each needs those before."""
    return ("Link", "Limit", "Address", "Neighbour", "Route").index(type(item).__name__)


def _count(kinds: dict[str, int], item: Item) -> None:
    kind = type(item).__name__.lower()
    kinds[kind] = kinds.get(kind, 0) + 1
