"""`decisec tail …`: what goes over the bus now, decoded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from decisec.cli.acts import CustomerOption, HostOption, VmOption, selection
from decisec.cli.connection import DEFAULT_STATE, NatsUrl, StateDirectory, bus
from decisec.cli.exits import EPILOG
from decisec.cli.output import say, show_line, show_text

if TYPE_CHECKING:
    from decisec.streams.reading import Record
    from decisec.streams.selection import Selection

app = typer.Typer(
    help="Watch frames, events, commands or rejects as they come, until Ctrl-C.",
    no_args_is_help=True,
    epilog=EPILOG,
)

JsonLine = Annotated[
    bool, typer.Option("--json", help="Print a JSON document per line.", show_default=False)
]
CountOption = Annotated[
    int | None,
    typer.Option("--count", "-n", min=1, help="End after so many.", show_default="no end"),
]
Decode = Callable[[str, "Record", "Selection"], Iterator[tuple[str, Any]]]
"""Lines of a message: as text, and as a document."""


@app.command(epilog=EPILOG)
def frames(
    host: HostOption = None,
    customer: CustomerOption = None,
    vm: VmOption = None,
    count: CountOption = None,
    as_json: JsonLine = False,
    nats_url: NatsUrl = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Frames as the collector passes them on; with --vm or --json a line per sample."""
    from schemas.subjects import METRICS_ENRICHED

    meant = selection(host, customer, vm)
    _follow((METRICS_ENRICHED,), _frame_lines(as_json), meant, count, as_json, nats_url, state_dir)


@app.command(epilog=EPILOG)
def events(
    host: HostOption = None,
    customer: CustomerOption = None,
    vm: VmOption = None,
    count: CountOption = None,
    as_json: JsonLine = False,
    nats_url: NatsUrl = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Events of VMs and hosts."""
    from schemas.subjects import HOST_EVENTS, VM_EVENTS

    meant = selection(host, customer, vm)
    _follow((VM_EVENTS, HOST_EVENTS), _message_lines, meant, count, as_json, nats_url, state_dir)


@app.command(epilog=EPILOG)
def commands(
    host: HostOption = None,
    customer: CustomerOption = None,
    vm: VmOption = None,
    count: CountOption = None,
    as_json: JsonLine = False,
    nats_url: NatsUrl = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Commands to agents; of a VM's metadata the names only."""
    from schemas.subjects import VM_COMMANDS

    meant = selection(host, customer, vm)
    _follow((VM_COMMANDS,), _message_lines, meant, count, as_json, nats_url, state_dir)


@app.command(epilog=EPILOG)
def rejected(
    host: HostOption = None,
    count: CountOption = None,
    as_json: JsonLine = False,
    nats_url: NatsUrl = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """What collector and batcher refuse."""
    from schemas.subjects import METRICS_REJECTED

    meant = selection(host)
    _follow((METRICS_REJECTED,), _reject_lines, meant, count, as_json, nats_url, state_dir)


def _follow(
    streams: tuple[str, ...],
    decode: Decode,
    meant: Selection,
    count: int | None,
    as_json: bool,
    nats_url: str,
    state_dir: Path,
) -> None:
    asyncio.run(_tail(streams, decode, meant, count, as_json, nats_url, state_dir))


async def _tail(
    streams: tuple[str, ...],
    decode: Decode,
    meant: Selection,
    count: int | None,
    as_json: bool,
    nats_url: str,
    state_dir: Path,
) -> None:
    from decisec.streams.tail import tail
    from schemas.errors import MalformedMessageError

    shown = missed = 0
    async with bus(nats_url, state_dir) as connection, tail(connection, *streams) as following:
        say(f"following {', '.join(streams)}")
        async for stream, record in following:
            if following.missed > missed:
                say(f"… {following.missed - missed} messages came too fast and are not shown")
                missed = following.missed
            try:
                for text, document in decode(stream, record, meant):
                    if as_json:
                        show_line(document)
                    else:
                        show_text(text)
                    shown += 1
                    if shown == count:
                        return
            except MalformedMessageError as error:
                say(f"not shown: {error}"[:200])


def _frame_lines(as_json: bool) -> Decode:
    from decisec.cli.stream_lines import frame_line, sample_line
    from decisec.streams.decoding import enriched_frame, sample_rows
    from decisec.streams.selection import narrowed
    from schemas.frames import replay_of

    def lines(_stream: str, record: Record, meant: Selection) -> Iterator[tuple[str, Any]]:
        frame = enriched_frame(record)
        if meant.hosts and frame.host not in meant.hosts:
            return
        part = narrowed(frame, meant, {})
        if part is None:
            return
        replay = replay_of(record.headers)
        if not (as_json or meant.vm_ids):
            yield frame_line(part, replay), None
            return
        for row in sample_rows(part):
            if replay:
                row["replay"] = replay
            yield sample_line(row), row

    return lines


def _message_lines(stream: str, record: Record, meant: Selection) -> Iterator[tuple[str, Any]]:
    from uuid import UUID

    from decisec.cli.stream_lines import message_line
    from decisec.streams.decoding import message_row

    row = message_row(stream, record)
    vm_id = UUID(row["vm_id"]) if row.get("vm_id") else None
    if meant.has(host=row["host_id"], customer=row.get("customer_id", ""), vm_id=vm_id):
        yield message_line(row), row


def _reject_lines(_stream: str, record: Record, meant: Selection) -> Iterator[tuple[str, Any]]:
    from decisec.cli.stream_lines import reject_line
    from decisec.streams.rejects import reject_of

    reject = reject_of(record)
    if meant.has(host=reject.host):
        yield reject_line(reject), reject
