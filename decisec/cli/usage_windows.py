"""Usage by windows of time and groups of VMs, as a table, JSON or CSV."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from decisec.cli.exits import CommandError, Exit
from decisec.cli.output import show, show_json

if TYPE_CHECKING:
    from decisec.sdk import Client
    from schemas.usage_windows import GroupBy, WindowUnit, WindowUsage

_UNITS = ("minute", "hour", "day")


class Groups(NamedTuple):
    """What `--by` asks for."""

    unit: WindowUnit | None
    by: GroupBy
    label: str


def groups(by: list[str]) -> Groups:
    """What `--by day`, `--by vm` and `--by label:NAME` mean together.

    Raises:
        CommandError: They contradict each other, or mean nothing.
    """
    from schemas.usage_windows import GroupBy, WindowUnit

    named = [part for text in by for part in text.split(",") if part]
    units = [part for part in named if part in _UNITS]
    others = [part for part in named if part not in _UNITS]
    wrong = [part for part in others if part != "vm" and not part.startswith("label:")]
    if wrong or len(units) > 1 or len(others) > 1:
        raise CommandError(
            "--by: give at most one of minute, hour and day, and one of vm and label:NAME",
            Exit.USAGE,
            "usage",
        )
    label = others[0].removeprefix("label:") if others and others[0] != "vm" else ""
    if others:
        kind = GroupBy.LABEL if label else GroupBy.VM
    else:
        kind = GroupBy.NONE if units else GroupBy.VM
    return Groups(WindowUnit(units[0]) if units else None, kind, label)


def report(
    client: Client,
    window: tuple[datetime | str | None, datetime | str | None],
    vm_ids: list[UUID],
    wanted: Groups,
    tz: str,
    names: dict[UUID, str],
    *,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Show all pages."""
    rows = client.usage_windows(
        start=window[0], end=window[1], vm_ids=vm_ids,
        window=wanted.unit, by=wanted.by, label=wanted.label, tz=tz,
    )  # fmt: skip
    if as_csv:
        _csv(rows, wanted)
    elif as_json:
        show_json({"tz": tz, "rows": list(rows)})
    else:
        show(_table(list(rows), wanted, tz, names))


def _csv(rows: Iterable[WindowUsage], wanted: Groups) -> None:
    import csv

    from schemas.usage_windows import GroupBy
    from schemas.vms import METERS

    figures = ("vms", "incarnations", "samples", *METERS)
    group = {GroupBy.VM: ["vm_id"], GroupBy.LABEL: [f"label_{wanted.label}"]}.get(wanted.by, [])
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["start", "end", *group, *figures, "simulated", "complete", "complete_until"])
    for row in rows:
        name = [row.vm_id] if wanted.by is GroupBy.VM else [row.label or ""] if group else []
        until = row.complete_until
        writer.writerow(
            [
                row.start.isoformat(),
                row.end.isoformat(),
                *name,
                *(getattr(row, figure) for figure in figures),
                str(row.simulated).lower(),
                str(row.complete).lower(),
                until.isoformat() if until else "",
            ]
        )


def _table(rows: list[WindowUsage], wanted: Groups, tz: str, names: dict[UUID, str]) -> Any:
    from rich.table import Table

    from decisec.live.quantities import cpu_seconds, gib_seconds, seconds, size
    from schemas.usage_windows import GroupBy

    complete = all(row.complete for row in rows)
    table = Table(title=f"Usage, {tz}", caption="complete" if complete else "may still change")
    table.add_column("from", no_wrap=True)
    if wanted.by is not GroupBy.NONE:
        table.add_column("VM" if wanted.by is GroupBy.VM else wanted.label, no_wrap=True)
    for heading in ("VMs", "uptime", "CPU", "memory", "disk read", "disk written", "net in",
                    "net out", "samples"):  # fmt: skip
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("complete", no_wrap=True)
    for row in rows:
        who = row.label if wanted.by is GroupBy.LABEL else ""
        if row.vm_id is not None:
            who = names.get(row.vm_id) or str(row.vm_id)
        table.add_row(
            row.start.isoformat(timespec="minutes"),
            *([who or "-"] if wanted.by is not GroupBy.NONE else []),
            str(row.vms),
            seconds(row.uptime_ms),
            cpu_seconds(row.cpu_ns),
            gib_seconds(row.mem_kib_ms),
            size(row.disk_read_bytes),
            size(row.disk_write_bytes),
            size(row.net_rx_bytes),
            size(row.net_tx_bytes),
            str(row.samples),
            "yes" if row.complete else "not yet",
        )
    return table
