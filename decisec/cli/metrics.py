"""`decisec metrics`: what VMs did in the last time, and each sample as it comes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from decisec.cli import vm
from decisec.cli.connection import DEFAULT_STATE, ApiUrl, StateDirectory, Token, api_client
from decisec.cli.exits import EPILOG, CommandError, Exit
from decisec.cli.output import Json, show, show_json, show_line, show_text

if TYPE_CHECKING:
    from schemas.live import LiveSample
    from schemas.series import SeriesReport, VmSeries

_RATES = ("disk_read_bytes", "disk_write_bytes", "net_rx_bytes", "net_tx_bytes")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EPILOG)(metrics)


def metrics(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="VM...", help="Ids or names of VMs.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Each sample as it comes, until Ctrl-C.")
    ] = False,
    start: Annotated[
        str, typer.Option(help="From this time on (ISO 8601).", show_default="5 minutes ago")
    ] = "",
    end: Annotated[str, typer.Option(help="Before this time (ISO 8601).", show_default="now")] = "",
    points: Annotated[
        int, typer.Option(min=1, max=1000, help="The finest steps that need no more points.")
    ] = 30,
    step_ms: Annotated[
        int | None, typer.Option(help="Length of a step instead.", show_default=False)
    ] = None,
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Show what VMs did, step by step; a step without any sample is left empty.

    With --follow each sample is shown as it comes, of all VMs if none is named; --json prints a
    line each then. Who reads too slowly gets the newest, and how many were skipped.
    """
    from decisec.cli.usage import instant

    if follow and (start or end):
        raise CommandError("--start, --end: not with --follow", Exit.USAGE, "usage")
    if not follow and not names:
        raise CommandError("name at least one VM, or give --follow", Exit.USAGE, "usage")
    with api_client(api_url, token, state_dir) as client:
        vms = [vm.find(client, name) for name in names or []]
        if follow:
            last: dict[UUID, LiveSample] = {}
            for one in client.live_metrics(vms):
                if as_json:
                    show_line(one)
                else:
                    show_text(_line(one, last.get(one.vm_id)))
                last[one.vm_id] = one
            return
        report = client.metric_series(
            vms,
            start=instant("--start", start),
            end=instant("--end", end),
            points=points,
            step_ms=step_ms,
        )
    if as_json:
        show_json(report)
        return
    for series in report.series:
        show(_table(report, series))


def _line(now: LiveSample, before: LiveSample | None) -> str:
    from decisec.live.quantities import cpu_seconds, percent, rate, size

    words = [now.at.strftime("%H:%M:%S.%f")[:-3], f"{now.vm_id}#{now.incarnation}", now.state]
    elapsed_ms = 0
    if before is not None and before.incarnation == now.incarnation:
        elapsed_ms = round((now.at - before.at).total_seconds() * 1000)
    if before is None or elapsed_ms <= 0:
        words.append(f"cpu {cpu_seconds(now.cpu_ns)}")
    else:

        def per_s(meter: str) -> float:
            return float(getattr(now, meter) - getattr(before, meter)) * 1000 / elapsed_ms

        words += [
            f"cpu {percent(per_s('cpu_ns') / 1e9)}",
            f"disk {rate(per_s('disk_read_bytes'))} r, {rate(per_s('disk_write_bytes'))} w",
            f"net {rate(per_s('net_rx_bytes'))} in, {rate(per_s('net_tx_bytes'))} out",
        ]
    words.append(f"mem {size(now.mem_bytes)}")
    words += [word for word in ("final", "simulated") if getattr(now, word)]
    words += [f"({now.skipped} skipped)"] if now.skipped else []
    return " ".join(words)


def _table(report: SeriesReport, series: VmSeries) -> Any:
    """A row per step."""
    from datetime import timedelta

    from rich.table import Table

    from decisec.live.quantities import percent, rate, size

    table = Table(
        title=f"VM {series.vm_id}",
        caption=f"steps of {report.step_ms / 1000:g} s"
        + ("" if report.complete else ", may still change"),
    )
    table.add_column("from", no_wrap=True)
    for heading in ("CPU", "memory", "disk read", "disk written", "net in", "net out", "samples"):
        table.add_column(heading, justify="right", no_wrap=True)
    values = series.values
    for number in range(report.points):
        at = report.start + timedelta(milliseconds=number * report.step_ms)
        cpu, uptime = values["cpu_ns"][number], values["uptime_ms"][number]
        memory, samples = values["mem_bytes"][number], values["samples"][number]
        table.add_row(
            at.isoformat(timespec="milliseconds"),
            "" if cpu is None or not uptime else percent(cpu / uptime / 1e6),
            "" if memory is None else size(memory),
            *(
                "" if (grown := values[meter][number]) is None
                else rate(grown * 1000 / report.step_ms)
                for meter in _RATES
            ),
            "" if samples is None else str(samples),
        )  # fmt: skip
    return table
