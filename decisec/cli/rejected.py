"""`decisec rejected …`: what was refused, and what becomes of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import typer

from decisec.cli.acts import (
    From,
    HostOption,
    Reason,
    To,
    ask_reason,
    bound,
    confirm,
    operator,
    selection,
)
from decisec.cli.connection import DEFAULT_STATE, NatsUrl, StateDirectory, bus
from decisec.cli.exits import EPILOG, CommandError, Exit
from decisec.cli.output import Json, show, show_json, show_text

if TYPE_CHECKING:
    from decisec.streams.bounds import Bound
    from decisec.streams.reading import Record
    from decisec.streams.rejects import Group, Reject, Treated
    from decisec.streams.selection import Selection
    from runtime.bus import Bus

app = typer.Typer(
    help="Look at frames that were refused, send them once more, or throw them away.",
    no_args_is_help=True,
    epilog=EPILOG,
)

ReasonIs = Annotated[
    str,
    typer.Option("--reason-is", metavar="WORD", help="Only of this reason, such as unknown_vm.",
                 show_default=False),
]  # fmt: skip
Sequences = Annotated[
    list[int] | None,
    typer.Argument(metavar="[SEQUENCE]...", min=1, help="As `rejected ls --each` shows them."),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.", show_default=False)]


@app.command("ls", epilog=EPILOG)
def list_rejects(
    each: Annotated[
        bool, typer.Option("--each", help="A line per message, not per host and reason.")
    ] = False,
    host: HostOption = None,
    reason_is: ReasonIs = "",
    begin: From = "",
    end: To = "",
    as_json: Json = False,
    nats_url: NatsUrl = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """List what was refused: by host and reason, or each message."""
    from decisec.streams.rejects import grouped, reject_of

    meant, bounds = selection(host), (bound("--from", begin), bound("--to", end))
    _check_reason_is(reason_is)

    async def read() -> list[Reject]:
        async with bus(nats_url, state_dir) as connection:
            return [reject_of(r) for r in await _found(connection, meant, reason_is, bounds)]

    found = asyncio.run(read())
    if as_json:
        show_json({"rejected": found} if each else {"groups": grouped(found)})
    else:
        show(_each_table(found) if each else _groups_table(grouped(found)))


@app.command("show", epilog=EPILOG)
def show_reject(
    sequence: Annotated[int, typer.Argument(metavar="SEQUENCE", min=1, help="Which.")],
    as_json: Json = False,
    nats_url: NatsUrl = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Show one that was refused, decoded as far as it can be."""
    import msgspec

    from decisec.streams.reading import record_at
    from decisec.streams.rejects import reject_of, samples_in
    from schemas.subjects import METRICS_REJECTED

    async def read() -> Record | None:
        async with bus(nats_url, state_dir) as connection:
            return await record_at(connection, METRICS_REJECTED, sequence)

    record = asyncio.run(read())
    if record is None:
        raise CommandError(
            f"there is no reject {sequence}; see `decisec rejected ls --each`",
            Exit.NOT_FOUND,
            "not_found",
        )
    reject, samples = reject_of(record), samples_in(record)
    document = msgspec.to_builtins(reject) | {
        "size_bytes": len(record.data),
        "begins_with": record.data[:64].hex(" "),
        "samples": samples,
    }
    if as_json:
        show_json(document)
        return
    for table in _details(document):
        show(table)


@app.command(epilog=EPILOG)
def retry(
    sequences: Sequences = None,
    host: HostOption = None,
    reason_is: ReasonIs = "",
    reason: Reason = "",
    yes: Yes = False,
    as_json: Json = False,
    nats_url: NatsUrl = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Send rejects once more to where they came from, and take them off the list.

    Give sequences, or --reason-is and --host. What is refused again comes back as a new one.
    """
    from decisec.streams.rejects import retry as act

    meant = selection(host)
    reason = _check(sequences, meant, reason_is, reason)

    async def run() -> Treated | None:
        async with bus(nats_url, state_dir) as connection:
            chosen = await _chosen(connection, sequences, meant, reason_is)
            if not chosen:
                return None
            confirm(f"Send {_number(chosen)} once more?", yes=yes)
            return await act(connection, chosen, actor=operator(), reason=reason)

    _report(asyncio.run(run()), "sent once more", as_json)


@app.command(epilog=EPILOG)
def discard(
    sequences: Sequences = None,
    host: HostOption = None,
    reason_is: ReasonIs = "",
    reason: Reason = "",
    yes: Yes = False,
    as_json: Json = False,
    nats_url: NatsUrl = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Throw rejects away for good; the audit keeps how many of which kind they were.

    Give sequences, or --reason-is and --host.
    """
    from decisec.streams.rejects import discard as act

    meant = selection(host)
    reason = _check(sequences, meant, reason_is, reason)

    async def run() -> Treated | None:
        async with bus(nats_url, state_dir) as connection:
            chosen = await _chosen(connection, sequences, meant, reason_is)
            if not chosen:
                return None
            confirm(f"Throw {_number(chosen)} away for good?", yes=yes)
            return await act(connection, chosen, actor=operator(), reason=reason)

    _report(asyncio.run(run()), "thrown away", as_json)


def _check(sequences: list[int] | None, meant: Selection, reason_is: str, reason: str) -> str:
    by_filter = bool(meant.hosts or reason_is)
    if by_filter == bool(sequences):
        raise CommandError(
            "give sequences, or --reason-is and --host to mean all of a kind",
            Exit.USAGE,
            "usage",
        )
    _check_reason_is(reason_is)
    return ask_reason(reason)


def _check_reason_is(word: str) -> None:
    from schemas.frames import RejectReason

    if word and word not in set(RejectReason):
        raise CommandError(
            f"--reason-is: {word!r} is none of {', '.join(RejectReason)}", Exit.USAGE, "usage"
        )


async def _found(
    connection: Bus, meant: Selection, reason_is: str, bounds: tuple[Bound | None, Bound | None]
) -> list[Record]:
    from decisec.streams.reading import resolve
    from decisec.streams.rejects import rejects
    from schemas.subjects import METRICS_REJECTED

    stretch = await resolve(connection, METRICS_REJECTED, *bounds)
    return [record async for record in rejects(connection, stretch, meant, reason_is)]


async def _chosen(
    connection: Bus, sequences: list[int] | None, meant: Selection, reason_is: str
) -> list[int]:
    if sequences:
        return sorted(set(sequences))
    return [r.sequence for r in await _found(connection, meant, reason_is, (None, None))]


def _report(treated: Treated | None, what: str, as_json: bool) -> None:
    """Tell what was done; the exit code is 1 if something was left."""
    from decisec.cli.stream_lines import plain

    if treated is None:
        if as_json:
            show_json({"act_id": None, "done": [], "left": {}})
        else:
            show("nothing of that kind is rejected")
        return
    if as_json:
        show_json(treated)
    else:
        show_text(f"{_number(treated.done)} {what}")
        for sequence, why in treated.left.items():
            show_text(f"  {sequence} was left: {plain(why)}")
    if treated.left:
        raise typer.Exit(Exit.FAILED)


def _number(sequences: list[int]) -> str:
    return "1 reject" if len(sequences) == 1 else f"{len(sequences)} rejects"


def _groups_table(groups: list[Group]) -> Any:
    from rich.table import Table

    from decisec.cli.stream_lines import clock

    table = Table()
    for heading in ("host", "reason"):
        table.add_column(heading, no_wrap=True)
    for heading in ("messages", "rows"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("first", "last", "sequences"):
        table.add_column(heading, no_wrap=True)
    for group in groups:
        table.add_row(
            group.host,
            _text(group.reason),
            str(group.messages),
            str(group.rows),
            clock(group.first_at.isoformat()),
            clock(group.last_at.isoformat()),
            f"{group.first_sequence}-{group.last_sequence}",
        )
    return table


def _each_table(found: list[Reject]) -> Any:
    from rich.table import Table

    from decisec.cli.stream_lines import clock

    table = Table()
    table.add_column("sequence", justify="right", no_wrap=True)
    for heading in ("at", "host", "reason"):
        table.add_column(heading, no_wrap=True)
    table.add_column("rows", justify="right", no_wrap=True)
    table.add_column("detail")
    for reject in found:
        table.add_row(
            str(reject.sequence),
            clock(reject.at.isoformat()),
            reject.host,
            _text(reject.reason),
            "-" if reject.rows is None else str(reject.rows),
            _text(reject.detail),
        )
    return table


def _details(document: dict[str, Any]) -> list[Any]:
    from rich.table import Table
    from rich.text import Text

    from decisec.cli.stream_lines import sample_line

    facts = Table(show_header=False, box=None)
    for name, value in document.items():
        if name != "samples" and value not in (None, ""):
            facts.add_row(name.replace("_", " "), _text(str(value)))
    return [facts, *(Text(sample_line(row)) for row in document["samples"])]


def _text(words: str) -> Any:
    """Words of a stranger: no markup, and nothing that controls a terminal."""
    from rich.text import Text

    from decisec.cli.stream_lines import plain

    return Text(plain(words))
