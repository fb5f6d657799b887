"""VMs as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from schemas.api import VmView
    from schemas.vms import VmSpec


def table_of(vms: list[VmView]) -> Any:
    """Many VMs, a line each."""
    from rich.table import Table

    table = Table()
    for heading in ("id", "name", "state", "host", "driver"):
        table.add_column(heading, no_wrap=True)
    for heading in ("vCPUs", "memory", "disk"):
        table.add_column(heading, justify="right", no_wrap=True)
    for vm in vms:
        table.add_row(
            str(vm.vm_id),
            vm.name,
            vm.state,
            vm.host_id,
            _driver(vm),
            str(vm.spec.vcpus),
            f"{vm.spec.memory_mib} MiB",
            f"{vm.spec.disk_mib} MiB" if vm.spec.disk_mib else "-",
        )
    return table


def _devices(spec: VmSpec) -> dict[str, str]:
    """What the VM has beyond a plain one. Of the metadata the names: somebody may look on."""
    import msgspec

    limits = {name: limit for name, limit in msgspec.structs.asdict(spec.limits).items() if limit}
    rows = {
        "balloon": f"{spec.balloon_mib} MiB" if spec.balloon_mib else "",
        "limits": ", ".join(f"{name} {limit}" for name, limit in limits.items()),
        "metadata": ", ".join(spec.metadata),
    }
    return {name: value for name, value in rows.items() if value}


def _network(vm: VmView) -> dict[str, str]:
    """Where it can be reached, and what its host keeps from it and from others."""
    rows = {
        "addresses": ", ".join(vm.addresses),
        "network": "cut off by the operator" if vm.quarantined else "",
        "dropped": ", ".join(f"{reason} {count}" for reason, count in sorted(vm.dropped.items())),
    }
    return {name: value for name, value in rows.items() if value}


def _driver(vm: VmView) -> str:
    return f"{vm.driver} (simulated)" if vm.simulated else vm.driver or "-"


def details(vm: VmView) -> Any:
    """One VM, a line for each thing that is known of it."""
    from rich.table import Table

    from decisec.live.quantities import cpu_seconds, seconds, size

    table = Table(show_header=False, box=None)
    rows = {
        "id": str(vm.vm_id),
        "name": vm.name or "-",
        "state": vm.state.value,
        "host": vm.host_id,
        "driver": _driver(vm),
        "image": vm.spec.image,
        "labels": ", ".join(f"{name}={value}" for name, value in sorted(vm.spec.labels.items()))
        or "-",
        "vCPUs": str(vm.spec.vcpus),
        "memory": f"{vm.spec.memory_mib} MiB",
        "disk": f"{vm.spec.disk_mib} MiB",
        **_devices(vm.spec),
        **_network(vm),
        "incarnation": str(vm.incarnation),
        "created": vm.created_at.isoformat(timespec="seconds"),
        "started": vm.started_at.isoformat(timespec="milliseconds") if vm.started_at else "-",
    }
    if vm.final_counters is not None:
        final = vm.final_counters
        rows |= {
            "exit reason": vm.exit_reason.value if vm.exit_reason else "-",
            "uptime": seconds(final.uptime_ms),
            "CPU": cpu_seconds(final.cpu_ns),
            "disk": f"{size(final.disk_read_bytes)} read, {size(final.disk_write_bytes)} written",
            "network": f"{size(final.net_rx_bytes)} in, {size(final.net_tx_bytes)} out",
        }
    if vm.restart_at is not None:
        rows["restarts at"] = f"{vm.restart_at:%Y-%m-%d %H:%M:%S} after {vm.failures} failures"
    if vm.last_error is not None:
        rows["last error"] = f"{vm.last_error.code}: {vm.last_error.message}"
    for name, value in rows.items():
        table.add_row(name, value)
    return table
