"""Customers, price plans and hosts as tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from schemas.admin_customers import CustomerDetails, CustomerView
    from schemas.admin_hosts import HostView, HostVm
    from schemas.hosts import Resources
    from schemas.limits import Rate
    from schemas.price_plans import PricePlanDetails, PricePlanView, PriceVersion

_QUOTA = ("vms", "vcpus", "memory_mib", "disk_mib", "snapshots")


def customers_table(customers: Iterable[CustomerView]) -> Any:
    """A customer a line."""
    table = _table("customer", "status", "pool", "price plan", right=_QUOTA)
    for one in customers:
        quota = [str(getattr(one.quota, name)) for name in _QUOTA]
        table.add_row(one.customer_id, one.status.value, one.pool, one.price_plan, *quota)
    return table


def customer_table(customer: CustomerDetails) -> Any:
    """One customer, a line for each thing."""
    rows = {
        "customer": customer.customer_id,
        "status": customer.status.value,
        "pool": customer.pool,
        "price plan": customer.price_plan,
    }
    for name in _QUOTA:
        used, limit = getattr(customer.used, name), getattr(customer.quota, name)
        rows[name] = f"{used} of {limit}"
    for name in ("reads", "mutations", "expensive"):
        rows[f"rate of {name}"] = _rate(getattr(customer.rates, name))
    rows["created"] = customer.created_at.isoformat(timespec="seconds")
    rows["generation"] = str(customer.generation)
    return _facts(rows)


def plans_table(plans: Iterable[PricePlanView]) -> Any:
    """A price plan a line."""
    table = _table("plan", "name", "currency", "valid since", "prices", "next")
    for one in plans:
        current = one.current
        table.add_row(
            one.plan_id,
            _text(one.name),
            one.currency,
            _hour(current) if current else "-",
            "\n".join(_prices(current)) if current else "-",
            _hour(one.next) if one.next else "-",
        )
    return table


def plan_tables(plan: PricePlanDetails) -> Sequence[Any]:
    """One price plan and all its versions."""
    facts = _facts(
        {
            "plan": plan.plan_id,
            "name": plan.name or "-",
            "currency": plan.currency,
            "valid now": f"version {plan.current.version}" if plan.current else "nothing yet",
        }
    )
    table = _table("version", "valid from", "prices", "entered by")
    for one in plan.versions:
        prices = "\n".join(_prices(one)) or "-"
        table.add_row(str(one.version), _hour(one), prices, _text(one.created_by))
    return facts, table


def hosts_table(hosts: Iterable[HostView]) -> Any:
    """A host a line."""
    right = ("VMs", "vCPUs", "memory MiB", "disk MiB", "slots")
    table = _table("host", "pool", "state", "driver", right=right)
    for one in hosts:
        beat = one.heartbeat
        room = _room(beat.free, beat.capacity) if beat else ["-"] * 4
        driver = f"{beat.driver} (simulated)" if beat and beat.simulated else ""
        table.add_row(
            one.host_id,
            beat.pool if beat else "-",
            _state(one),
            driver or (beat.driver if beat else "-"),
            str(one.vms),
            *room,
        )
    table.caption = "free / capacity"
    return table


def host_table(host: HostView) -> Any:
    """One host, a line for each thing."""
    rows = {"host": host.host_id, "state": _state(host), "VMs": str(host.vms)}
    if (beat := host.heartbeat) is not None:
        labels = ", ".join(f"{name}={value}" for name, value in sorted(beat.labels.items()))
        rows |= {
            "pool": beat.pool,
            "region": beat.region,
            "labels": labels or "-",
            "architecture": beat.arch or "not said",
            "driver": f"{beat.driver} {beat.driver_version}".rstrip(),
            "images": ", ".join(beat.images) or "-",
            "decisec": beat.version,
            "heartbeat": f"{host.age_s or 0:.1f} s old",
        }
        heads = ("vCPUs", "memory MiB", "disk MiB", "slots")
        free = _room(beat.free, beat.capacity)
        rows |= {f"free {head}": amount for head, amount in zip(heads, free, strict=True)}
    if (order := host.order) is not None:
        verb = "drain" if order.draining else "take VMs"
        at = order.ordered_at.isoformat(timespec="seconds")
        rows["order"] = f"{verb}, by {order.requested_by} at {at}" + (
            f": {order.reason}" if order.reason else ""
        )
    if (loss := host.loss) is not None:
        at = loss.declared_at.isoformat(timespec="seconds")
        rows["lost"] = f"since {at}: {loss.reason} ({loss.requested_by})"
    return _facts(rows)


def host_vms_table(vms: Iterable[HostVm]) -> Any:
    """A VM a line."""
    table = _table("VM", "customer", "name", "state", right=("vCPUs", "memory", "disk"))
    for one in vms:
        table.add_row(
            str(one.vm_id),
            one.customer_id,
            one.name,
            one.state.value,
            str(one.vcpus),
            f"{one.memory_mib} MiB",
            f"{one.disk_mib} MiB" if one.disk_mib else "-",
        )
    return table


def _table(*left: str, right: Sequence[str] = ()) -> Any:
    from rich.table import Table

    table = Table()
    for heading in left:
        table.add_column(heading, no_wrap=True)
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _facts(rows: dict[str, str]) -> Any:
    from rich.table import Table

    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(name, _text(value))
    return table


def _text(value: str) -> Any:
    """Text as it is: what people and agents write may hold brackets."""
    from rich.text import Text

    return Text(value)


def _state(host: HostView) -> str:
    words = [host.state.value.replace("_", " ")]
    if host.order is not None and host.heartbeat is not None:
        wanted = host.order.draining
        if wanted is not host.heartbeat.draining:
            words.append("drain ordered" if wanted else "undrain ordered")
    if host.loss is not None:
        words.append("lost")
    return ", ".join(words)


def _room(free: Resources, capacity: Resources) -> list[str]:
    return [
        f"{getattr(free, name)} / {getattr(capacity, name)}"
        for name in ("vcpus", "memory_mib", "disk_mib", "slots")
    ]


def _rate(rate: Rate | None) -> str:
    if rate is None:
        return "the gateways'"
    return f"{rate.per_s:g} a second, {rate.burst} at once" if rate.per_s else "no limit"


def _hour(version: PriceVersion) -> str:
    return version.valid_from.isoformat(timespec="minutes").replace("+00:00", "Z")


def _prices(version: PriceVersion) -> list[str]:
    import msgspec

    return [
        f"{meter} {price.price} per {price.per}"
        for meter, price in msgspec.structs.asdict(version.prices).items()
        if price is not None
    ]
