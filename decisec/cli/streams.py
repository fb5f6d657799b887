"""`decisec streams …`: the streams and buckets on the bus against their declaration."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from decisec.cli.connection import DEFAULT_STATE, NatsUrl, StateDirectory, bus
from decisec.cli.exits import EPILOG
from decisec.cli.output import Json, show, show_json

if TYPE_CHECKING:
    from runtime.streams import Declaration, Difference

app = typer.Typer(help="Streams and buckets on the bus.", no_args_is_help=True, epilog=EPILOG)

Replicas = Annotated[
    int,
    typer.Option(
        min=0, max=5, envvar="DECISEC_STREAMS_REPLICAS", show_default="as declared, 1",
        help="Copies of each stream and bucket in a cluster of NATS servers.",
    ),
]  # fmt: skip
Partitions = Annotated[
    int,
    typer.Option(
        min=0, max=1024, envvar="DECISEC_STREAMS_PARTITIONS", show_default="as declared, 8",
        help="Parts of the raw metrics; at most as many collectors work.",
    ),
]  # fmt: skip

DRIFT = 1
"""Exit code of `diff` when the server differs, as diff(1) has it."""


@app.command("ls", epilog=EPILOG)
def list_declared(
    replicas: Replicas = 0, partitions: Partitions = 0, as_json: Json = False
) -> None:
    """List the streams and buckets as declared. Asks no server."""
    from runtime import streams

    declared = streams.declared(replicas=replicas, partitions=partitions)
    if as_json:
        show_json({"streams": declared.stream, "buckets": declared.bucket})
        return
    from rich.table import Table

    from decisec.live.quantities import size

    table = Table()
    for heading in ("stream or bucket", "subjects"):
        table.add_column(heading, no_wrap=True)
    for heading in ("kept for", "limit"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("holds")
    rows = [
        *((s.name, s.subjects, s.max_age_s, s.max_bytes, s.description) for s in declared.stream),
        *((b.name, (f"$KV.{b.name}.>",), b.ttl_s, b.max_bytes, b.description)
          for b in declared.bucket),
    ]  # fmt: skip
    for name, subjects, age_s, max_bytes, holds in rows:
        limit = size(max_bytes) if max_bytes else "-"
        table.add_row(name, ", ".join(subjects), _age(age_s), limit, holds)
    show(table)


@app.command(epilog=EPILOG)
def apply(
    replicas: Replicas = 0,
    partitions: Partitions = 0,
    as_json: Json = False,
    nats_url: NatsUrl = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Make the server agree with the declaration; messages stay. Safe to repeat."""
    from runtime import streams
    from runtime.streams import Drift

    wanted = streams.declared(replicas=replicas, partitions=partitions)
    found = asyncio.run(_compare(nats_url, state_dir, wanted, change=True))
    changed = [d for d in found if d.drift is not Drift.SAME]
    if as_json:
        show_json({"changed": changed, "unchanged": len(found) - len(changed)})
        return
    for difference in changed:
        done = "created" if difference.drift is Drift.MISSING else "updated"
        show(f"{difference.kind} {difference.name}: {done}")
    show(f"{len(changed)} changed, {len(found) - len(changed)} as declared")


@app.command(epilog=EPILOG)
def diff(
    replicas: Replicas = 0,
    partitions: Partitions = 0,
    as_json: Json = False,
    nats_url: NatsUrl = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Show where the server differs from the declaration; exit code 1 if it does."""
    from runtime import streams
    from runtime.streams import Drift

    wanted = streams.declared(replicas=replicas, partitions=partitions)
    found = asyncio.run(_compare(nats_url, state_dir, wanted, change=False))
    drifted = [d for d in found if d.drift is not Drift.SAME]
    if as_json:
        show_json({"differences": drifted})
    else:
        for difference in drifted:
            show(f"{difference.kind} {difference.name}: {difference.drift}")
            for field, (declared, actual) in difference.fields.items():
                show(f"  {field}: declared {declared}, is {actual}")
        if not drifted:
            show("the server is as declared")
    if drifted:
        raise typer.Exit(DRIFT)


@app.command(epilog=EPILOG)
def info(
    as_json: Json = False, nats_url: NatsUrl = "", state_dir: StateDirectory = DEFAULT_STATE
) -> None:
    """Show what the streams hold, and how full they are."""
    rows = asyncio.run(_info(nats_url, state_dir))
    if as_json:
        show_json({"streams": rows})
        return
    from rich.table import Table

    from decisec.live.quantities import size

    table = Table()
    table.add_column("stream", no_wrap=True)
    for heading in ("messages", "size", "limit", "full", "consumers"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        limit = row["max_bytes"]
        table.add_row(
            row["name"],
            str(row["messages"]),
            size(row["bytes"]),
            size(limit) if limit > 0 else "-",
            f"{100 * row['bytes'] / limit:.1f} %" if limit > 0 else "-",
            str(row["consumers"]),
        )
    show(table)


def _age(seconds: int) -> str:
    for unit, length_s in (("d", 86_400), ("h", 3600), ("s", 1)):
        if seconds and seconds % length_s == 0:
            return f"{seconds // length_s} {unit}"
    return "-"


async def _compare(
    nats_url: str, state_dir: Path, wanted: Declaration, *, change: bool
) -> list[Difference]:
    from runtime import streams

    async with bus(nats_url, state_dir) as connection:
        act = streams.apply if change else streams.compare
        return await act(connection, wanted)


async def _info(nats_url: str, state_dir: Path) -> list[dict[str, Any]]:
    import nats.errors
    import nats.js.errors

    from runtime.errors import TransientError

    async with bus(nats_url, state_dir) as connection:
        try:
            found = await connection.js.streams_info()
        except (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError) as error:
            raise TransientError(f"NATS did not list its streams: {error}") from error
    return [
        {
            "name": stream.config.name,
            "subjects": stream.config.subjects or [],
            "messages": stream.state.messages,
            "bytes": stream.state.bytes,
            "max_bytes": stream.config.max_bytes or 0,
            "first_sequence": stream.state.first_seq,
            "last_sequence": stream.state.last_seq,
            "consumers": stream.state.consumer_count,
        }
        for stream in sorted(found, key=lambda s: s.config.name or "")
    ]
