"""What the demo shows: the live table, the bill per VM and customer, the verdict."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from uuid import UUID

from rich.console import Console
from rich.live import Live as Screen
from rich.table import Table

from decisec.cli.usage import usage_table
from decisec.demo.report import Report
from decisec.live.board import line, table
from decisec.live.feed import now_ms
from decisec.live.rates import Live
from schemas.usage import UsageReport

_REFRESH_S = 0.5
_LINE_EACH_S = 4.0


async def watch(live: Live, names: Mapping[UUID, str], seconds: float, console: Console) -> None:
    """Show the VMs for so long: a live table on a terminal, else a line now and then."""
    until = time.monotonic() + seconds
    if not console.is_terminal:
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(_LINE_EACH_S, left))
            console.print(line(live.rates(now_ms()), live.lag_ms, names))
        return
    with Screen(console=console, auto_refresh=False, transient=False) as screen:
        while (left := until - time.monotonic()) > 0:
            screen.update(
                table(live.rates(now_ms()), live.lag_ms, names, title=f"live, {left:.0f} s left"),
                refresh=True,
            )
            await asyncio.sleep(min(_REFRESH_S, left))


def bill(reports: Sequence[UsageReport], names: dict[UUID, str], console: Console) -> None:
    """Show the usage reports."""
    for report in reports:
        console.print(usage_table(report, names))


def verdict(report: Report, console: Console) -> None:
    """Show the figures and what is wrong, if anything is."""
    figures = Table(show_header=False, box=None, title="audit", title_justify="left")
    jitter, lag = report.jitter_ms, report.lag_ms
    simulated = " [bold red](simulated)[/]" if report.simulated else ""
    for name, value in (
        ("hypervisor", f"{report.driver} {report.driver_version}{simulated}"),
        ("ticks", f"{report.ticks_stored} stored of {report.ticks_expected} expected"),
        ("rejected", str(report.rejected)),
        ("sequence numbers missing", str(report.seq_missing)),
        ("conserved", "yes, to the unit" if report.conserved else "[bold red]NO[/]"),
        (
            "sampling jitter",
            f"p50 {jitter['p50']:.2f} ms, p99 {jitter['p99']:.2f} ms, max {jitter['max']:.2f} ms",
        ),
        ("lag, sample to row", f"p50 {lag['p50']:.0f} ms, p99 {lag['p99']:.0f} ms"),
    ):
        figures.add_row(name, value)
    console.print(figures)
    for problem in report.problems:
        console.print(f"[bold red]problem[/] {problem}")
