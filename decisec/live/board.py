"""The live table, and the same as one line for logs and pipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

from rich.table import Table

from decisec.live.quantities import percent, rate, size
from decisec.live.rates import VmRates

_NUMBERS = ("CPU", "memory", "disk read", "disk write", "net rx", "net tx", "samples/s", "lag")
_STYLES = {"running": "green", "paused": "yellow", "failed": "red"}


def table(
    vms: Sequence[VmRates], lag_ms: int | None, names: Mapping[UUID, str], *, title: str
) -> Table:
    """A row per VM. `names` are the customers' own names, where they gave one."""
    simulated = any(vm.simulated for vm in vms)
    board = Table(
        title=f"{title} [bold red](simulated)[/]" if simulated else title,
        caption="rates over the last second; lag: sample taken to row queryable, median",
    )
    for heading in ("VM", "customer", "state"):
        board.add_column(heading, no_wrap=True)
    for heading in _NUMBERS:
        board.add_column(heading, justify="right", no_wrap=True)
    for vm in vms:
        style = _STYLES.get(vm.state, "dim")
        board.add_row(
            names.get(vm.vm_id) or str(vm.vm_id),
            vm.customer,
            f"[{style}]{vm.state}[/]",
            percent(vm.cpu_ratio),
            size(vm.mem_bytes),
            rate(vm.disk_read_bytes_per_s),
            rate(vm.disk_write_bytes_per_s),
            rate(vm.net_rx_bytes_per_s),
            rate(vm.net_tx_bytes_per_s),
            f"{vm.samples_per_s:.0f}",
            "-" if lag_ms is None else f"{lag_ms} ms",
        )
    return board


def line(vms: Sequence[VmRates], lag_ms: int | None, names: Mapping[UUID, str]) -> str:
    """All VMs in one line."""
    parts = [
        f"{names.get(vm.vm_id) or vm.vm_id} {vm.state} cpu {percent(vm.cpu_ratio)}"
        f" {vm.samples_per_s:.0f} samples/s{' simulated' if vm.simulated else ''}"
        for vm in vms
    ]
    lag = "unknown" if lag_ms is None else f"{lag_ms} ms"
    return "; ".join(parts) + f"; lag {lag}" if parts else "no VM has sent a sample yet"
