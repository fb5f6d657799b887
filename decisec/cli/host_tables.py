"""Hosts as people read them: tables and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from rich.table import Table

    from runtime.hosts import HostView
    from schemas.hosts import HostInfo, HostOrders, Resources
    from schemas.vms import VmStatus


def hosts_table(hosts: Sequence[HostView]) -> Table:
    """One line per host: its state, and what is free of what it has."""
    from rich.table import Table

    table = Table(caption="free / capacity" if hosts else None)
    for heading in ("host", "pool", "state", "driver"):
        table.add_column(heading, no_wrap=True)
    for heading in ("VMs", "vCPUs", "memory", "disk", "slots"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("run since", no_wrap=True)
    for host in hosts:
        info = host.info
        if info is None:
            table.add_row(host.host_id, "-", state_of(host), *["-"] * 7)
            continue
        free, capacity = info.free, info.capacity
        table.add_row(
            host.host_id,
            info.pool,
            state_of(host),
            _driver(info),
            str(info.vms),
            f"{free.vcpus} / {capacity.vcpus}",
            _gib(free.memory_mib, capacity.memory_mib),
            _gib(free.disk_mib, capacity.disk_mib),
            f"{free.slots} / {capacity.slots}",
            _instant(info.started_at),
        )
    return table


def state_of(host: HostView) -> str:
    """A host's state, and what is not as it should be about it."""
    words = [host.state.value]
    if not host.heard and host.age_s is not None:
        words = [f"{host.state.value} for {host.age_s:.0f} s"]
    ordered = host.order
    if ordered is not None and not host.obeys(ordered) and (ordered.draining or host.heard):
        words.append("drain ordered" if ordered.draining else "undrain ordered")
    return ", ".join(words)


def details_tables(host: HostView, vms: Sequence[VmStatus]) -> list[Table]:
    """Everything there is to say of a host: itself, its room, its VMs."""
    tables = [_facts(host)]
    if host.info is not None:
        tables.append(_room(host.info))
    if vms:
        tables.append(_vms(vms))
    return tables


def drain_sentence(host: HostView) -> str:
    """How far a host that was ordered to drain has come, and what there is to do."""
    name, info = host.host_id, host.info
    if info is None or not host.heard:
        return f"{name} takes no new VM; its agent is not heard, and obeys as soon as it runs"
    if host.empty:
        return f"{name} takes no new VM and is empty"
    return (
        f"{name} takes no new VM; {_count(info.vms)} left. They run on, and nothing is moved by "
        f"itself: `decisec host get {name}` shows whose they are, and the host is empty once they "
        "are deleted"
    )


def progress(host: HostView) -> str:
    """How far a host has come on its way to empty, in a few words."""
    if host.info is None or not host.heard:
        return f"{host.host_id}: {host.state.value}, waiting for its agent"
    if host.empty:
        return f"{host.host_id}: empty"
    return f"{host.host_id}: {host.state.value}, {_count(host.info.vms)} left"


def order_line(order: HostOrders) -> str:
    """An order in a line."""
    verb = "drain" if order.draining else "take VMs"
    reason = f": {order.reason}" if order.reason else ""
    return f"{verb}, by {order.requested_by} at {_instant(order.ordered_at)}{reason}"


def _facts(host: HostView) -> Table:
    from rich.table import Table
    from rich.text import Text

    rows = {"host": host.host_id, "state": state_of(host)}
    info = host.info
    if info is not None:
        labels = ", ".join(f"{name}={value}" for name, value in sorted(info.labels.items()))
        if info.draining:
            rows["drains because"] = info.drain_reason or "not said"
        rows |= {
            "VMs": str(info.vms),
            "pool": info.pool,
            "region": info.region,
            "labels": labels or "-",
            "architecture": info.arch or "not said",
            "driver": f"{_driver(info)} {info.driver_version}".rstrip(),
            "why this driver": info.driver_reason or "-",
            "VM network": f"none: {info.no_network}" if info.no_network else "yes",
            "images": ", ".join(info.images) or "-",
            "decisec": info.version,
            "run since": _instant(info.started_at),
            "run": str(info.run_id),
            "boot": info.boot_id,
            "heartbeat": f"{_instant(info.heartbeat_at)}, {host.age_s or 0:.1f} s old",
        }
    rows["order"] = order_line(host.order) if host.order else "none"
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        # Text, since what agents and operators write may hold brackets.
        table.add_row(name, Text(value))
    return table


def _room(info: HostInfo) -> Table:
    from rich.table import Table

    table = Table()
    table.add_column("")
    for heading in ("vCPUs", "memory", "disk", "slots"):
        table.add_column(heading, justify="right", no_wrap=True)
    rows = {"capacity": info.capacity, "reserved": info.reserved, "free": info.free}
    for name, amount in rows.items():
        table.add_row(name, *(_amounts(amount) if amount is not None else ["?"] * 4))
    return table


def _vms(vms: Sequence[VmStatus]) -> Table:
    from rich.table import Table

    table = Table()
    for heading in ("VM", "customer", "state"):
        table.add_column(heading, no_wrap=True)
    for vm in vms:
        table.add_row(str(vm.vm_id), vm.customer_id, vm.state)
    return table


def _amounts(amount: Resources) -> list[str]:
    from decisec.live.quantities import size
    from schemas.units import MIB

    return [
        str(amount.vcpus),
        size(amount.memory_mib * MIB),
        size(amount.disk_mib * MIB),
        str(amount.slots),
    ]


def _gib(free_mib: int, capacity_mib: int) -> str:
    from schemas.units import KIB

    return f"{free_mib / KIB:.1f} / {capacity_mib / KIB:.1f} GiB"


def _driver(info: HostInfo) -> str:
    return f"{info.driver} (simulated)" if info.simulated else info.driver


def _instant(at: datetime | None) -> str:
    return at.isoformat(timespec="seconds").replace("+00:00", "Z") if at else "-"


def _count(vms: int) -> str:
    return "1 VM is" if vms == 1 else f"{vms} VMs are"
