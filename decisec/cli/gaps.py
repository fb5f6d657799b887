"""`decisec gaps`: frames that did not come, hosts silent or lost, and what came too late."""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from decisec.cli.acts import HostOption, selection
from decisec.cli.connection import DEFAULT_STATE, NatsUrl, StateDirectory, bus
from decisec.cli.exits import EPILOG, CommandError, Exit
from decisec.cli.output import Json, say, show, show_json, show_line, show_text

if TYPE_CHECKING:
    from decisec.streams.gaps import Adjustment, Item, Ledger
    from decisec.streams.selection import Selection


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EPILOG)(gaps)


def gaps(
    only_open: Annotated[
        bool, typer.Option("--open", help="Only what is missing, silent or lost still.")
    ] = False,
    adjustments: Annotated[
        bool,
        typer.Option(
            "--adjustments", help="Only what answers did not wait for: late, put back, replayed."
        ),
    ] = False,
    host: HostOption = None,
    follow: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C."),
    ] = False,
    as_json: Json = False,
    nats_url: NatsUrl = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Show holes in the frames of hosts, and hosts silent or lost, from the last 30 days.

    A hole is closed once all its frames have come. What a host that was declared lost has sent
    late, or an operator has put back after it was refused, is an adjustment: it counts, and changes
    usage answers that were complete. Of a replay nobody knows whether any of it is new: what is
    stored already changes nothing. With --follow, --json prints a line each.
    """
    if only_open and adjustments:
        raise CommandError("--open: not with --adjustments", Exit.USAGE, "usage")
    meant = selection(host)
    if follow:
        asyncio.run(_follow(meant, only_open, adjustments, as_json, nats_url, state_dir))
        return
    ledger = asyncio.run(_read(meant, nats_url, state_dir))
    found = _wanted(ledger, only_open, adjustments)
    if as_json:
        show_json({"gaps": found})
    else:
        show(gaps_table(found))


async def _read(meant: Selection, nats_url: str, state_dir: Path) -> Ledger:
    from decisec.streams.gaps import read_ledger

    async with bus(nats_url, state_dir) as connection:
        return await read_ledger(connection, meant)


def _wanted(ledger: Ledger, only_open: bool, adjustments: bool) -> list[Item]:
    from decisec.streams.gaps import Adjustment

    found = ledger.all(only_open=only_open)
    return [one for one in found if isinstance(one, Adjustment) or not adjustments]


async def _follow(
    meant: Selection,
    only_open: bool,
    adjustments: bool,
    as_json: bool,
    nats_url: str,
    state_dir: Path,
) -> None:
    from decisec.cli.stream_lines import plain
    from decisec.streams.gaps import Adjustment, read_ledger
    from decisec.streams.tail import tail
    from schemas.errors import MalformedMessageError
    from schemas.events import decode_host_event
    from schemas.subjects import HOST_EVENTS

    def tell(one: Item) -> None:
        if adjustments and not isinstance(one, Adjustment):
            return
        if as_json:
            show_line(one)
        else:
            show_text(plain(" ".join(row_of(one))))

    async with bus(nats_url, state_dir) as connection, tail(connection, HOST_EVENTS) as following:
        # Events that come meanwhile are in both; the ledger takes each once.
        ledger = await read_ledger(connection, meant)
        for one in ledger.all(only_open=only_open):
            tell(one)
        say("following HOST_EVENTS")
        async for _, record in following:
            try:
                event = decode_host_event(record.data)
            except MalformedMessageError:
                continue
            if meant.has(host=event.host_id) and (changed := ledger.take(event)):
                tell(changed)


def gaps_table(found: list[Item]) -> Any:
    """A row each."""
    from rich.table import Table
    from rich.text import Text

    from decisec.cli.stream_lines import plain

    table = Table()
    for heading in ("what", "host", "from", "to", "state"):
        table.add_column(heading, no_wrap=True)
    table.add_column("of", no_wrap=True)
    for one in found:
        table.add_row(*(Text(plain(cell)) for cell in row_of(one)))
    return table


def row_of(one: Item) -> tuple[str, ...]:
    """What, host, from, to, state, and of what."""
    from decisec.live.quantities import seconds
    from decisec.streams.gaps import Adjustment, Gap, Loss

    if isinstance(one, Adjustment):
        return (
            f"{one.frames} frames",
            one.host,
            _when(one.first_tick),
            _when(one.last_tick),
            "may be adjusted" if one.uncertain else "adjusted",
            f"{one.rows} samples; {_why(one)}",
        )
    if isinstance(one, Gap):
        return (
            f"{one.frames} frames",
            one.host,
            _when(one.opened_at),
            _when(one.closed_at),
            "missing" if one.open else "closed",
            f"run {one.run_id} seq {one.seq_first}-{one.seq_last}",
        )
    if isinstance(one, Loss):
        return (
            "no host",
            one.host,
            _when(one.lost_at),
            _when(one.found_at),
            "lost" if one.open else "found",
            f"{one.reason} ({one.requested_by})" if one.requested_by else "",
        )
    lasted = f" for {seconds(one.silent_ms)}" if one.silent_ms is not None else ""
    return (
        "no frames",
        one.host,
        _when(one.since),
        _when(one.heard_at),
        (one.level if one.open else "heard again") + lasted,
        "",
    )


def _why(one: Adjustment) -> str:
    """How rows came to count that nobody waited for."""
    if one.lost_at is not None:
        return f"lost since {_when(one.lost_at)}"
    what = "refused before, put back by" if one.cause == "retry" else one.cause
    if one.uncertain:
        what += ", changes nothing that is stored already:"
    return f"{what} {one.replay_id} ({one.reason})"


def _when(at: datetime | None) -> str:
    from decisec.cli.stream_lines import clock

    return clock(at.isoformat()) if at else "-"
