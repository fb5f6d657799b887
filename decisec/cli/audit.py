"""`decisec audit`: who did what, and what was refused."""

from __future__ import annotations

import asyncio
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from decisec.cli.connection import (
    DEFAULT_STATE,
    ApiUrl,
    NatsUrl,
    StateDirectory,
    Token,
    api_client,
    bus,
)
from decisec.cli.exits import EPILOG, CommandError, Exit
from decisec.cli.output import Json, show, show_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from schemas.audit import AuditEntry
    from schemas.audit_log import AuditPage

_WITHIN_S = 60.0


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EPILOG)(audit)


def audit(
    start: Annotated[
        str,
        typer.Option("--from", help="From this time on (ISO 8601).", show_default="a day ago"),
    ] = "",
    end: Annotated[
        str, typer.Option("--to", help="Before this time (ISO 8601).", show_default="now")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Entries, at most.")] = 100,
    customer: Annotated[
        str,
        typer.Option(
            metavar="CUSTOMER",
            help="For operators, by the bus: of this customer; `operator` for operators' own.",
            show_default=False,
        ),
    ] = "",
    everybody: Annotated[
        bool, typer.Option("--all", help="For operators, by the bus: of everybody.")
    ] = False,
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    nats_url: NatsUrl = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """List what was done and what was refused, newest first.

    Your own entries by the API; with --customer or --all those of others, by the bus. A window is
    31 days at most. An act is there some seconds later.
    """
    from decisec.cli.usage import instant

    begin, until = instant("--from", start), instant("--to", end)
    if customer and everybody:
        raise CommandError("--customer or --all, not both", Exit.USAGE, "usage")
    if customer or everybody:
        entries = asyncio.run(_read(customer, begin, until, limit, nats_url, state_dir))
    else:
        with api_client(api_url, token, state_dir) as client:
            found = client.audit(start=begin, end=until, page_size=min(limit, 500))
            entries = list(islice(found, limit))
    if as_json:
        show_json({"entries": entries})
    else:
        show(table(entries, customers=bool(customer or everybody)))


async def _read(
    customer: str,
    start: datetime | None,
    end: datetime | None,
    limit: int,
    nats_url: str,
    state_dir: Path,
) -> list[AuditEntry]:
    from datetime import timedelta

    from decisec.cli.store import ask
    from runtime.clock import utc_now
    from schemas.audit_log import MAX_AUDIT_PAGE, AuditQuery
    from schemas.errors import InvalidIdError
    from schemas.ids import token as checked
    from schemas.store import StoreQuestion, StoreVerb

    try:
        whose = checked(customer) if customer else None
    except InvalidIdError as error:
        raise CommandError(f"--customer: {error}", Exit.USAGE, "usage") from error
    until = end or utc_now() + timedelta(seconds=1)
    entries: list[AuditEntry] = []
    cursor = ""
    async with bus(nats_url, state_dir) as connection:
        while True:
            query = AuditQuery(
                start=start or until - timedelta(days=1),
                end=until,
                limit=min(limit - len(entries), MAX_AUDIT_PAGE),
                cursor=cursor,
            )
            question = StoreQuestion(audit=query, customer=whose)
            reply = await ask(connection, StoreVerb.AUDIT, question, _WITHIN_S)
            page: AuditPage | None = reply.audit
            if page is None:
                raise CommandError("the batcher's answer holds no audit log: update it")
            entries.extend(page.entries)
            cursor = page.next_cursor
            if not cursor or len(entries) >= limit:
                return entries


def table(entries: Sequence[AuditEntry], *, customers: bool) -> Any:
    """A row per entry."""
    from rich.table import Table
    from rich.text import Text

    found = Table(title="Audit")
    headings = ["time", "customer", "actor", "action", "target", "outcome", "from", "why"]
    if not customers:
        headings.remove("customer")
    for heading in headings:
        found.add_column(heading, no_wrap=True)
    for entry in entries:
        details = entry.details
        count = f" x{details['count']}" if details.get("count", "1") != "1" else ""
        cells = [
            entry.at.isoformat(timespec="milliseconds"),
            entry.customer_id,
            entry.actor,
            entry.action,
            entry.target,
            entry.outcome + count,
            " ".join(filter(None, (details.get("door", ""), details.get("address", "")))),
            details.get("code", "") or entry.reason,
        ]
        if not customers:
            del cells[1]
        found.add_row(*(Text(_plain(cell)) for cell in cells))
    return found


def _plain(text: str) -> str:
    """Without what a terminal would obey: names come from tokens and paths."""
    from decisec.cli.plain_text import PlainText

    return PlainText().feed(text.encode()).replace("\n", " ")
