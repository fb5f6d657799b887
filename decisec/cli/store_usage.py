"""`decisec store usage`: what was used on a host, by customer and VM."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from decisec.cli.connection import DEFAULT_STATE, NatsUrl, StateDirectory, bus
from decisec.cli.exits import EPILOG, CommandError, Exit
from decisec.cli.output import Json, show, show_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from schemas.store import HostUsage, StoreQuestion

_WITHIN_S = 60.0


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EPILOG)(usage)


def usage(
    host: Annotated[str, typer.Option(metavar="HOST", help="Whose.", show_default=False)],
    start: Annotated[
        str,
        typer.Option(
            "--from", help="From this time on (ISO 8601).", show_default="today 00:00 UTC"
        ),
    ] = "",
    end: Annotated[
        str,
        typer.Option("--to", help="Before this time (ISO 8601).", show_default="a day later"),
    ] = "",
    vms: Annotated[bool, typer.Option("--vms", help="A line per VM, not per customer.")] = False,
    as_json: Json = False,
    nats_url: NatsUrl = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Report what all customers' VMs used on a host in a window of time.

    How a window may start and end depends on its age, as in `decisec usage`.
    """
    found = asyncio.run(_read(_question(host, start, end), nats_url, state_dir))
    if as_json:
        show_json(found)
    else:
        show(usage_table(found, by_vm=vms))


def _question(host: str, start: str, end: str) -> StoreQuestion:
    from datetime import time, timedelta

    from decisec.cli.usage import instant
    from runtime.clock import utc_now
    from schemas.errors import InvalidIdError
    from schemas.ids import token
    from schemas.store import StoreQuestion

    try:
        token(host)
    except InvalidIdError as error:
        raise CommandError(f"--host: {error}", Exit.USAGE, "usage") from error
    now = utc_now()
    begin = instant("--from", start) or now.combine(now.date(), time(), now.tzinfo)
    return StoreQuestion(
        host=host, start=begin, end=instant("--to", end) or begin + timedelta(days=1)
    )


async def _read(question: StoreQuestion, nats_url: str, state_dir: Path) -> HostUsage:
    from decisec.cli.store import ask
    from schemas.store import StoreVerb

    async with bus(nats_url, state_dir) as connection:
        reply = await ask(connection, StoreVerb.USAGE, question, _WITHIN_S)
    if reply.usage is None:
        raise CommandError("the batcher's answer holds no usage: update it")
    return reply.usage


def usage_table(found: HostUsage, *, by_vm: bool) -> Any:
    """A row per customer or VM, and their sums."""
    from rich.table import Table

    table = Table(
        title=f"Usage on {found.host_id}",
        caption=f"{found.start.isoformat()} to {found.end.isoformat()}, {_completeness(found)}",
        show_footer=True,
    )
    table.add_column("customer", footer="total", no_wrap=True)
    table.add_column("VM" if by_vm else "VMs", no_wrap=True)
    samples = sum(one.samples for one in found.customers)
    for heading, footer in zip(_HEADINGS, _cells(found.totals, samples), strict=True):
        table.add_column(heading, footer=footer, justify="right", no_wrap=True)
    if by_vm:
        for row in found.vms:
            used = {meter: getattr(row, meter) for meter in found.totals}
            table.add_row(row.customer_id, str(row.vm_id), *_cells(used, row.samples))
        if found.not_shown:
            table.add_row("...", f"{found.not_shown} more")
    else:
        for one in found.customers:
            table.add_row(one.customer_id, str(one.vms), *_cells(one.totals, one.samples))
    return table


_HEADINGS = (
    "uptime", "CPU", "memory", "disk read", "disk written", "net in", "net out", "samples",
)  # fmt: skip


def _cells(used: Mapping[str, int], samples: int) -> tuple[str, ...]:
    from decisec.live.quantities import cpu_seconds, gib_seconds, seconds, size

    return (
        seconds(used["uptime_ms"]),
        cpu_seconds(used["cpu_ns"]),
        gib_seconds(used["mem_kib_ms"]),
        *(size(used[m]) for m in ("disk_read_bytes", "disk_write_bytes")),
        *(size(used[m]) for m in ("net_rx_bytes", "net_tx_bytes")),
        str(samples),
    )


def _completeness(found: HostUsage) -> str:
    if found.complete:
        words = "complete"
    elif found.complete_until is None:
        words = "may still change"
    else:
        words = f"complete until {_words(found.complete_until)}"
    if found.samples_since:
        words += f"; samples counted from {_words(found.samples_since)} on"
    return f"{words}; the host is lost" if found.lost else words


def _words(at: datetime) -> str:
    return at.isoformat(timespec="seconds")
