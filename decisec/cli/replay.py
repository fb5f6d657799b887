"""`decisec replay`: a stretch of a stream once more, to the pipeline, a file or the terminal."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from decisec.cli.acts import (
    CustomerOption,
    From,
    HostOption,
    Reason,
    To,
    VmOption,
    ask_reason,
    bound,
    operator,
    selection,
)
from decisec.cli.connection import DEFAULT_STATE, NatsUrl, StateDirectory, bus
from decisec.cli.exits import EPILOG, CommandError, Exit
from decisec.cli.output import Json, show_json, show_line, show_text
from decisec.cli.replay_progress import (
    kept_progress,
    no_progress,
    progress_bar,
    show_counts,
    warn_of_overflow,
)

if TYPE_CHECKING:
    from decisec.streams.checkpoint import Plan, Progress
    from decisec.streams.selection import Selection
    from decisec.streams.targets import Target
    from runtime.bus import Bus


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EPILOG)(replay)


def replay(
    source: Annotated[
        str,
        typer.Argument(
            metavar="[raw|enriched|events|rejected]",
            help="Stream: METRICS_RAW, METRICS_ENRICHED, VM_EVENTS or METRICS_REJECTED.",
            show_default=False,
        ),
    ] = "",
    into: Annotated[
        str,
        typer.Option(
            "--into",
            metavar="TARGET",
            help="collector (raw), batcher (enriched), FILE.jsonl, FILE.parquet, or terminal.",
        ),
    ] = "terminal",
    begin: From = "",
    end: To = "",
    host: HostOption = None,
    customer: CustomerOption = None,
    vm: VmOption = None,
    speed: Annotated[
        str,
        typer.Option(
            metavar="Nx|max",
            help="N times as fast as it was; max: as it goes.",
            show_default="max",
        ),
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be replayed; change nothing.")
    ] = False,
    again: Annotated[
        bool,
        typer.Option("--again", help="Take messages that came by a replay or a retry as well."),
    ] = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Go on with an interrupted replay; only --speed may be given anew.",
            show_default=False,
        ),
    ] = None,
    reason: Reason = "",
    as_json: Json = False,
    nats_url: NatsUrl = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Replay a stretch of a stream; whatever is replayed how often, no bill changes.

    Frames go back to the collector or the batcher under new message ids; the reason for it stands
    in the audit. Interrupted, a replay leaves a checkpoint file to go on from (`--resume`). To the
    terminal, --json prints a line per sample.
    """
    import msgspec

    from decisec.streams.checkpoint import Progress, read_checkpoint
    from decisec.streams.targets import GOES_BACK

    if resume is not None:
        if source or begin or end or host or customer or vm or again or reason or dry_run:
            raise CommandError(
                "--resume: the checkpoint says the rest; give --speed at most", Exit.USAGE, "usage"
            )
        left = read_checkpoint(resume)
        if speed:
            left = msgspec.structs.replace(
                left, plan=msgspec.structs.replace(left.plan, speed=_factor(speed))
            )
        asyncio.run(
            _run(left.plan, left.progress, resume, as_json, nats_url, state_dir, resumed=True)
        )
        return
    stream = _stream(source)
    meant = selection(host, customer, vm)
    _check_target(stream, into, meant)
    factor = _factor(speed)
    bounds = (bound("--from", begin), bound("--to", end))
    goes_back = into in GOES_BACK
    if goes_back and not dry_run:
        if bounds[0] is None:
            raise CommandError(
                "--from: say from where on; 1 is the first message of all", Exit.USAGE, "usage"
            )
        reason = ask_reason(reason)

    async def prepare() -> Plan:
        from decisec.streams.replay import plan

        async with bus(nats_url, state_dir) as connection:
            return await plan(
                connection, source=stream, target=into, begin=bounds[0], end=bounds[1],
                selection=meant, speed=factor, again=again, reason=reason,
            )  # fmt: skip

    wanted = asyncio.run(prepare())
    progress = Progress(cursor=wanted.first - 1)
    if dry_run:
        asyncio.run(_dry_run(wanted, progress, as_json, nats_url, state_dir))
        return
    checkpoint = Path(f"decisec-replay-{wanted.replay_id}.json")
    asyncio.run(_run(wanted, progress, checkpoint, as_json, nats_url, state_dir, resumed=False))


def _stream(source: str) -> str:
    from decisec.streams.targets import SOURCES

    if source in SOURCES.values():
        return source
    if source not in SOURCES:
        raise CommandError(
            f"say what to replay: {', '.join(SOURCES)}" + (f"; not {source!r}" if source else ""),
            Exit.USAGE,
            "usage",
        )
    return SOURCES[source]


def _check_target(stream: str, into: str, meant: Selection) -> None:
    from decisec.streams.targets import TERMINAL, check_route

    try:
        check_route(stream, None if into == TERMINAL else into, meant)
    except ValueError as error:
        raise CommandError(f"--{error}", Exit.USAGE, "usage") from error


def _factor(speed: str) -> float:
    if speed in ("", "max"):
        return 0.0
    try:
        factor = float(speed.removesuffix("x"))
    except ValueError:
        factor = 0.0
    if not 0.001 <= factor <= 1e6:
        raise CommandError("--speed: give 2x, 0.5x or the like, or max", Exit.USAGE, "usage")
    return factor


async def _dry_run(
    plan: Plan, progress: Progress, as_json: bool, nats_url: str, state_dir: Path
) -> None:
    import msgspec

    from decisec.streams.replay import Replay, overflow_bytes
    from decisec.streams.targets import Nowhere

    unpaced = msgspec.structs.replace(plan, speed=0.0)
    async with bus(nats_url, state_dir) as connection:
        discarded = await overflow_bytes(connection, plan)
        with progress_bar(plan, progress) as tell:
            await Replay(connection, unpaced, Nowhere(), progress=progress, told=tell).run()
    if as_json:
        show_json({"plan": plan, "would": progress, "discards_bytes": discarded})
        return
    show_text(f"would replay {plan.words()}:")
    show_counts(progress)
    warn_of_overflow(discarded, plan)


async def _run(
    plan: Plan,
    progress: Progress,
    checkpoint: Path,
    as_json: bool,
    nats_url: str,
    state_dir: Path,
    *,
    resumed: bool,
) -> None:
    from decisec.streams.replay import Replay, overflow_bytes, run_audited
    from decisec.streams.targets import GOES_BACK, TERMINAL

    goes_back = plan.target in GOES_BACK
    with ExitStack() as exits:
        async with bus(nats_url, state_dir) as connection:
            target = _open(exits, plan, progress, connection, as_json, resumed=resumed)
            if goes_back and not resumed:
                warn_of_overflow(await overflow_bytes(connection, plan), plan)
            if plan.target != TERMINAL:
                tell = exits.enter_context(progress_bar(plan, progress))
                if not plan.target.endswith(".parquet"):
                    tell = exits.enter_context(kept_progress(checkpoint, plan, progress, tell))
            else:
                tell = no_progress
            work = Replay(connection, plan, target, progress=progress, told=tell)
            if goes_back:
                await run_audited(connection, work, actor=operator(), resumed=resumed)
            else:
                await work.run()
    if plan.target == TERMINAL:
        return
    if as_json:
        show_json({"plan": plan, "done": progress})
    else:
        show_text(f"replayed {plan.words()}:")
        show_counts(progress)
    if progress.gone:
        raise typer.Exit(Exit.FAILED)


def _open(
    exits: ExitStack, plan: Plan, progress: Progress, connection: Bus, as_json: bool, *,
    resumed: bool,
) -> Target:  # fmt: skip
    from decisec.streams.columns import parquet
    from decisec.streams.targets import (
        GOES_BACK,
        TERMINAL,
        BackOntoTheBus,
        Printed,
        json_lines,
    )

    if plan.target in GOES_BACK:
        return BackOntoTheBus(connection, plan.replay_id)
    if plan.target == TERMINAL:
        return Printed(plan.source, show_line if as_json else _print_row)
    path = Path(plan.target)
    if path.suffix == ".parquet":
        return exits.enter_context(parquet(path))
    kept = progress.written_bytes if resumed else None
    return exits.enter_context(json_lines(path, plan.source, kept))


def _print_row(row: dict[str, Any]) -> None:
    from decisec.cli.stream_lines import line

    show_text(line(row))
