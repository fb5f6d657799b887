"""`decisec usage` and `decisec top`: what VMs used, and what they do now."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from decisec.cli import usage_windows
from decisec.cli.connection import (
    DEFAULT_STATE,
    ApiUrl,
    NatsUrl,
    StateDirectory,
    Token,
    api_client,
    async_client,
    bus,
    bus_at_hand,
)
from decisec.cli.exits import EPILOG, CommandError, Exit
from decisec.cli.output import Json, console, show, show_json

if TYPE_CHECKING:
    from decisec.live.rates import Live
    from decisec.sdk import Client
    from schemas.usage import UsageReport

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_REFRESH_S = 0.5
_NAMES_EVERY_MS = 2000
_ONCE_S = 1.3
"""Long enough for a whole window of samples."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog=EPILOG)(usage)
    app.command(epilog=EPILOG)(top)


def usage(
    start: Annotated[
        str, typer.Option(help="From this time on (ISO 8601).", show_default="today 00:00 UTC")
    ] = "",
    end: Annotated[
        str, typer.Option(help="Before this time (ISO 8601).", show_default="tomorrow 00:00 UTC")
    ] = "",
    vm: Annotated[list[str] | None, typer.Option(metavar="UUID", help="Only these VMs.")] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GROUP",
            help="A row for each: minute, hour or day, and vm or label:NAME; may be given twice.",
        ),
    ] = None,
    tz: Annotated[
        str,
        typer.Option(
            metavar="ZONE",
            help="Whose hours and days, e.g. Europe/Berlin; --start and --end may be dates then.",
            show_default=False,
        ),
    ] = "",
    as_csv: Annotated[bool, typer.Option("--csv", help="Print rows as CSV.")] = False,
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Report what your VMs used in a window of time."""
    if as_csv and as_json:
        raise CommandError("--csv: not with --json", Exit.USAGE, "usage")
    wanted = [_vm_id(text) for text in vm or []]
    if by or tz or as_csv:
        found = usage_windows.groups(by or [])
        dates = (_date_or_instant("--start", start, tz), _date_or_instant("--end", end, tz))
        with api_client(api_url, token, state_dir) as client:
            names = {} if as_json or as_csv else _names(client)
            usage_windows.report(
                client, dates, wanted, found, tz or "UTC", names, as_json=as_json, as_csv=as_csv
            )
        return
    window = (instant("--start", start), instant("--end", end))
    with api_client(api_url, token, state_dir) as client:
        report = client.usage(start=window[0], end=window[1], vm_ids=wanted)
        names = {} if as_json else _names(client)
    if as_json:
        show_json(report)
    else:
        show(usage_table(report, names))


def instant(option: str, text: str) -> datetime | None:
    """A time that an option gives; UTC if it says no zone.

    Raises:
        CommandError: It is none.
    """
    if not text:
        return None
    try:
        instant = datetime.fromisoformat(text)
    except ValueError as error:
        raise CommandError(
            f"{option}: {text!r} is no ISO 8601 time such as 2026-01-31T12:00:00Z",
            Exit.USAGE,
            "usage",
        ) from error
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


def _date_or_instant(option: str, text: str, tz: str) -> datetime | str | None:
    """A date as it is, which the API takes in the zone that is asked for; else a time."""
    if tz and _DATE.fullmatch(text):
        return text
    return instant(option, text)


def _vm_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError as error:
        raise CommandError(f"--vm: {text!r} is no UUID", Exit.USAGE, "usage") from error


def completeness(report: UsageReport) -> str:
    """Whether the answer can still change, in words."""
    if report.complete:
        words = "complete"
    elif report.complete_until is None:
        words = "may still change"
    else:
        words = f"complete until {report.complete_until.isoformat(timespec='seconds')}"
    lost = report.lost_hosts
    return f"{words}, not counting what was lost with {', '.join(lost)}" if lost else words


def usage_table(report: UsageReport, names: dict[UUID, str]) -> Any:
    """A row per VM and their sums."""
    from rich.table import Table

    from decisec.live.quantities import cpu_seconds, gib_seconds, seconds, size

    simulated = any(row.simulated for row in report.vms)
    counted = report.samples_since
    table = Table(
        title=f"Usage of {report.customer_id}" + (" [bold red](simulated)[/]" if simulated else ""),
        caption=f"{report.start.isoformat()} to {report.end.isoformat()}, {completeness(report)}"
        + (f"; samples counted from {counted.isoformat()} on" if counted else ""),
        show_footer=True,
    )
    totals = report.totals
    table.add_column("VM", footer="total", no_wrap=True)
    for heading, footer in (
        ("uptime", seconds(totals.get("uptime_ms", 0))),
        ("CPU", cpu_seconds(totals.get("cpu_ns", 0))),
        ("memory", gib_seconds(totals.get("mem_kib_ms", 0))),
        ("disk read", size(totals.get("disk_read_bytes", 0))),
        ("disk written", size(totals.get("disk_write_bytes", 0))),
        ("net in", size(totals.get("net_rx_bytes", 0))),
        ("net out", size(totals.get("net_tx_bytes", 0))),
        ("samples", str(sum(row.samples for row in report.vms))),
    ):
        table.add_column(heading, footer=footer, justify="right", no_wrap=True)
    table.add_column("settled", no_wrap=True)
    for row in report.vms:
        table.add_row(
            names.get(row.vm_id) or str(row.vm_id),
            seconds(row.uptime_ms),
            cpu_seconds(row.cpu_ns),
            gib_seconds(row.mem_kib_ms),
            size(row.disk_read_bytes),
            size(row.disk_write_bytes),
            size(row.net_rx_bytes),
            size(row.net_tx_bytes),
            str(row.samples),
            "yes" if row.settled else "not yet",
        )
    return table


def top(
    once: Annotated[bool, typer.Option("--once", help="Show one table and end.")] = False,
    as_json: Json = False,
    nats_url: NatsUrl = "",
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Show what your VMs do now, until Ctrl-C; once only without a terminal.

    By the API; with a bus at hand (--nats-url, or a stack that runs here) by that, which also
    tells how late rows are.
    """
    once = once or as_json or not sys.stdout.isatty()
    by_bus = bus_at_hand(nats_url, state_dir)

    @asynccontextmanager
    async def followed(customer: str) -> AsyncIterator[Live]:
        from decisec.live.api_feed import following_api
        from decisec.live.feed import following

        if by_bus:
            async with (
                bus(nats_url, state_dir) as connection,
                following(connection, frozenset({customer})) as live,
            ):
                yield live
        else:
            async with (
                async_client(api_url, token, state_dir) as streaming,
                following_api(streaming, customer) as live,
            ):
                yield live

    with api_client(api_url, token, state_dir) as client:
        asyncio.run(_top(client, followed, once=once, as_json=as_json))


async def _top(
    client: Client,
    followed: Callable[[str], AbstractAsyncContextManager[Live]],
    *,
    once: bool,
    as_json: bool,
) -> None:
    from rich.live import Live as Screen

    from decisec.live.board import table
    from decisec.live.feed import now_ms

    customer = (await asyncio.to_thread(client.whoami)).customer_id
    names = await asyncio.to_thread(_names, client)
    title = f"VMs of {customer}"
    async with followed(customer) as live:
        if once:
            await asyncio.sleep(_ONCE_S)
            rates = live.rates(now_ms())
            if as_json:
                show_json({"customer_id": customer, "lag_ms": live.lag_ms, "vms": rates})
            else:
                show(table(rates, live.lag_ms, names, title=title))
            return
        named_ms = now_ms()
        with Screen(console=console(), auto_refresh=False, screen=False) as screen:
            while True:
                rates = live.rates(now_ms())
                screen.update(table(rates, live.lag_ms, names, title=title), refresh=True)
                await asyncio.sleep(_REFRESH_S)
                unnamed = any(vm.vm_id not in names for vm in rates)
                if unnamed and now_ms() - named_ms >= _NAMES_EVERY_MS:
                    names = await asyncio.to_thread(_names, client, names)
                    named_ms = now_ms()


def _names(client: Client, known: dict[UUID, str] | None = None) -> dict[UUID, str]:
    """The customer's own names; what is `known` already stays if the API is away."""
    import httpx

    from decisec.sdk import UnavailableError

    try:
        return {view.vm_id: view.name for view in client.list_vms()}
    except (httpx.TransportError, UnavailableError):
        if known is None:
            raise
        return known
