"""What stands in an agent's fabric, against what its records say that its VMs are to have there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from schemas.vms import METERED_STATES
from tests.support.wires import PREFIX
from vm_agent import namespace
from vm_agent.agreements import Agreements
from vm_agent.connecting import Connecting
from vm_agent.data_dir import identity
from vm_agent.network.attachment import Attachment
from vm_agent.network.filter import Filter
from vm_agent.network.items import Standing, read_all
from vm_agent.network.layout import UPLINK, Layout, netns_of
from vm_agent.network.leases import Ranges
from vm_agent.network.netlink import Netlink
from vm_agent.network.nft import Nft
from vm_agent.network.rules.entries import Entry, entries
from vm_agent.ports import Host
from vm_agent.store import Record


def disconnections(data_dir: Path, records: Iterable[Record]) -> list[str]:
    """Links, addresses, neighbours, routes and rules that nobody owns, or that somebody lacks.

    Args:
        data_dir: The agent's; it must be at rest.
        records: All of its VMs.
    """
    records = list(records)
    found = _twice(records)
    files = {path.name for path in (data_dir / "network").glob("*")} - {"numbers.json"}
    found += [f"file of nobody in network/: {name}" for name in sorted(files)]
    wanted = [
        _connecting(data_dir, records).attachment(r) for r in records if r.state in METERED_STATES
    ]
    vms = [vm for vm in wanted if vm is not None]
    netns = netns_of(identity(data_dir))
    if not (namespace.NETNS_DIR / netns).exists():
        return found + [f"{vm.tap} has no fabric" for vm in vms]
    layout = Layout(identity=identity(data_dir), ranges=Ranges(PREFIX))
    with ThreadPoolExecutor(1) as thread:
        standing = thread.submit(_read, netns).result()
    found += _links(layout, vms, standing)
    found += _compare(
        {str(item) for vm in vms for item in layout.behind(vm)},
        {str(item) for item in standing.items if getattr(item, "link", "").startswith("vm")},
    )
    ruled = asyncio.run(_rules(netns))
    return found + _compare(_named({vm.tap: entries(vm) for vm in vms}), _named(ruled))


def _connecting(data_dir: Path, records: Iterable[Record]) -> Connecting:
    """What the agent makes connections of its records with, without its host."""
    agreements = Agreements(data_dir / "peers.json")
    agreements.load()
    tenants = {one.customer_id: one.lease.tenant for one in records if one.lease is not None}
    host = SimpleNamespace(networks=SimpleNamespace(tenants=tenants))
    return Connecting(cast("Host", host), agreements)


def _twice(records: list[Record]) -> list[str]:
    """What two VMs hold."""
    leases = [record.lease for record in records if record.lease is not None]
    held = [x for one in leases for x in (one.slot, one.prefix, one.ipv4) if x]
    return [f"two VMs hold {x}" for x in set(held) if held.count(x) > 1]


def _links(layout: Layout, vms: list[Attachment], standing: Standing) -> list[str]:
    """A tap has to be there as it should be, and no other link but the fabric's own."""
    there = {
        str((index, link))
        for index, link in standing.links.items()
        if link.name not in ("lo", UPLINK)
    }
    return _compare({str((vm.index, layout.tap(vm))) for vm in vms}, there)


def _named(rules: Mapping[str, Iterable[Entry]]) -> set[str]:
    """What a chain holds is in its name."""
    return {f"rule of {tap}: {replace(one, body='')}" for tap in rules for one in rules[tap]}


def _compare(due: set[str], there: set[str]) -> list[str]:
    missing = [f"missing: {one}" for one in sorted(due - there)]
    return missing + [f"without an owner: {one}" for one in sorted(there - due)]


def _read(netns: str) -> Standing:
    namespace.enter(netns)
    netlink = Netlink()
    try:
        return read_all(netlink)
    finally:
        netlink.close()


async def _rules(netns: str) -> dict[str, frozenset[Entry]]:
    nft = Nft(netns)
    try:
        return dict(await Filter(nft).actual())
    finally:
        await nft.close()
