"""`decisec store …`: the store's schema and size, and its rollups against its ticks."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from decisec.cli.connection import DEFAULT_STATE, NatsUrl, StateDirectory, bus
from decisec.cli.exits import EPILOG, CommandError, Exit
from decisec.cli.output import Json, say, show, show_json
from decisec.cli.store_usage import register

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import date

    from runtime.bus import Bus
    from schemas.store import DayCheck, StoreQuestion, StoreReply, StoreStatus, StoreVerb

app = typer.Typer(help="Look after the store: schema, size, rollups.", no_args_is_help=True,
                  epilog=EPILOG)  # fmt: skip

register(app)

_STATUS_WITHIN_S = 30.0
_EX_CONFIG = 78

DIFFERS = 1
"""Exit code of `check` when a rollup is behind, as diff(1) has it."""


@app.command(epilog=EPILOG)
def migrate(as_json: Json = False) -> None:
    """Bring a server's schema up to date, by the batcher's DECISEC_* settings.

    A batcher does the same when it starts. An embedded store can be opened by one process only:
    stop its batcher before.
    """
    from schemas.store import decode_migrations_done

    out = _batcher("migrate")
    found = decode_migrations_done(out)
    if as_json:
        show_json(found)
    else:
        show(f"{len(found.migrations)} migrations, {found.pending} pending")


@app.command(epilog=EPILOG)
def grant(
    customer: Annotated[str, typer.Argument(metavar="CUSTOMER", help="Whose rows.")],
    reads_all: Annotated[
        list[str] | None,
        typer.Option(
            metavar="USER",
            help="Sees all rows as before, such as the batcher's user; repeatable.",
            show_default="the user in DECISEC_BATCHER_STORE_URL",
        ),
    ] = None,
    only_print: Annotated[
        bool, typer.Option("--print", help="Show the statements and run none.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a role on a server that reads one customer's rows and nobody else's. Safe to repeat.

    Runs by the batcher's DECISEC_* settings, as a user who may give rights. Then give the role to a
    user of the server: GRANT decisec_reader_CUSTOMER TO somebody.
    """
    more = [part for user in reads_all or () for part in ("--reads-all", user)]
    out = _batcher("grants", *more, *(["--print"] if only_print else []), "--", customer)
    statements = [line.removesuffix(";") for line in out.decode().splitlines()]
    if as_json:
        show_json({"applied": not only_print, "statements": statements})
    else:
        sys.stdout.write(out.decode())


@app.command(epilog=EPILOG)
def status(
    as_json: Json = False, nats_url: NatsUrl = "", state_dir: StateDirectory = DEFAULT_STATE
) -> None:
    """Show which migrations are applied or pending, and what the tables hold."""
    found = asyncio.run(_status(nats_url, state_dir))
    if as_json:
        show_json(found)
        return
    from rich.table import Table

    from decisec.live.quantities import size

    kind = "embedded" if found.embedded else "server"
    where = f", cluster {found.cluster}" if found.cluster else ""
    show(f"ClickHouse {found.engine} ({kind}), database {found.database}{where}")
    table = Table()
    for heading in ("migration", "state", "applied at", "sha256"):
        table.add_column(heading, no_wrap=True)
    for one in found.migrations:
        at = one.applied_at.isoformat(timespec="seconds") if one.applied_at else "-"
        table.add_row(f"{one.version:04}_{one.name}", one.state, at, one.sha256[:12])
    show(table)
    table = Table()
    table.add_column("table", no_wrap=True)
    for heading in ("rows", "size", "kept, days"):
        table.add_column(heading, justify="right", no_wrap=True)
    for held in found.tables:
        table.add_row(held.name, str(held.rows), size(held.size_bytes), str(held.kept_days))
    show(table)


@app.command(epilog=EPILOG)
def check(
    since: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="DAY",
            help="From this UTC day on (2026-01-31).",
            show_default="as far back as ticks are kept whole",
        ),
    ] = "",
    until: Annotated[
        str, typer.Option("--to", metavar="DAY", help="Up to this day.", show_default="today")
    ] = "",
    repair: Annotated[
        bool, typer.Option("--repair", help="Make rollups that are behind again from the ticks.")
    ] = False,
    reason: Annotated[
        str, typer.Option(help="Why it is repaired, for the audit.", show_default=False)
    ] = "",
    timeout: Annotated[float, typer.Option(min=1, help="Seconds a day may take.")] = 600.0,
    as_json: Json = False,
    nats_url: NatsUrl = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Compare minutes, hours and days of usage with the ticks that are kept, day by day.

    Exit code 1 if a rollup lacks something that the ticks show. One that knows more than the ticks
    (ahead) is as it should be: ticks expire.
    """  # fmt: skip
    if repair and not reason:
        raise CommandError("--reason: say why; it goes into the audit", Exit.USAGE, "usage")
    days = (_day("--from", since), _day("--to", until))
    found = asyncio.run(
        _check(
            nats_url,
            state_dir,
            days,
            reason=reason if repair else "",
            within_s=timeout,
            # Nothing but the result, or the problem, where a program reads.
            tell=(lambda _: None) if as_json else say,
        )
    )
    if as_json:
        show_json({"days": found})
    else:
        _show(found)
    if any(d.behind for one in found for d in (one.left if repair else one.differences)):
        raise typer.Exit(DIFFERS)


def _batcher(module: str, *arguments: str) -> bytes:
    """What a module of the batcher's says, run in a process of its own by the batcher's settings.

    Raises:
        CommandError: It failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", f"batcher.{module}", *arguments], capture_output=True, check=False
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["it failed"]
        wrong = done.returncode in (_EX_CONFIG, Exit.USAGE)
        raise CommandError(said[-1], Exit.USAGE if wrong else Exit.FAILED, "refused")
    return done.stdout


async def _status(nats_url: str, state_dir: Path) -> StoreStatus:
    from schemas.store import StoreQuestion, StoreVerb

    async with bus(nats_url, state_dir) as connection:
        reply = await ask(connection, StoreVerb.STATUS, StoreQuestion(), _STATUS_WITHIN_S)
    if reply.status is None:
        raise CommandError("the batcher's answer holds no status")
    return reply.status


async def _check(
    nats_url: str,
    state_dir: Path,
    days: tuple[date | None, date | None],
    *,
    reason: str,
    within_s: float,
    tell: Callable[[str], None],
) -> list[DayCheck]:
    from datetime import timedelta

    from schemas.store import StoreQuestion, StoreVerb

    found: list[DayCheck] = []
    verb = StoreVerb.REPAIR if reason else StoreVerb.CHECK
    async with bus(nats_url, state_dir) as connection:
        reply = await ask(connection, StoreVerb.STATUS, StoreQuestion(), _STATUS_WITHIN_S)
        if reply.status is None:
            raise CommandError("the batcher's answer holds no status")
        day = days[0] or reply.status.first_day
        last = days[1] or reply.status.last_day
        while day <= last:
            tell(f"{verb} {day} ...")
            question = StoreQuestion(day=day, actor=_actor() if reason else "", reason=reason)
            answer = await ask(connection, verb, question, within_s)
            if answer.check is not None:
                found.append(answer.check)
            day += timedelta(days=1)
    return found


async def ask(
    connection: Bus, verb: StoreVerb, question: StoreQuestion, within_s: float
) -> StoreReply:
    """What a batcher answers.

    Raises:
        CommandError: It refuses, or nobody answers.
    """
    from schemas.codec import encode
    from schemas.errors import ErrorCode
    from schemas.store import decode_store_reply
    from schemas.subjects import store_ask

    answer = await connection.request(store_ask(verb), encode(question), timeout_s=within_s)
    reply = decode_store_reply(answer.data)
    if reply.error is not None:
        codes = {
            ErrorCode.BAD_REQUEST: Exit.USAGE,
            ErrorCode.UNAVAILABLE: Exit.UNREACHABLE,
        }
        raise CommandError(
            reply.error.message, codes.get(reply.error.code, Exit.FAILED), reply.error.code
        )
    return reply


def _show(found: Sequence[DayCheck]) -> None:
    from rich.table import Table

    table = Table()
    for heading in ("day", "customer", "rollup", "behind", "ahead", "done"):
        table.add_column(heading, no_wrap=True)
    for one in found:
        for d in one.differences:
            done = "repaired" if d.customer_id in one.repaired else "-"
            table.add_row(str(one.day), d.customer_id, d.level, str(d.behind), str(d.ahead), done)
    compared = sum(one.compared for one in found)
    if table.row_count:
        show(table)
    differences = table.row_count + sum(one.not_shown for one in found)
    show(f"{len(found)} days, {compared} rows compared, {differences} differences")


def _day(option: str, text: str) -> date | None:
    from datetime import date

    if not text:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise CommandError(
            f"{option}: {text!r} is no day such as 2026-01-31", Exit.USAGE, "usage"
        ) from error


def _actor() -> str:
    """Who says to do it: a name for people, no proof."""
    import getpass
    import os
    import socket

    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = f"uid {os.getuid()}"
    return f"{name}@{socket.gethostname()}"[:255]
