"""`decisec replay`: a stretch of a stream once more, to the pipeline, a file or the terminal."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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
from decisec.cli.output import Json, console, say, show, show_json, show_line

if TYPE_CHECKING:
    from decisec.streams.checkpoint import Plan, Progress
    from decisec.streams.targets import Target
    from runtime.bus import Bus

_SAVE_EVERY_S = 0.5


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
        str, typer.Option(metavar="Nx|max", help="N times as fast as it was; max: as it goes.")
    ] = "max",
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
            help="Go on with an interrupted replay; nothing else is to be given.",
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
    from decisec.streams.checkpoint import Progress, read_checkpoint
    from decisec.streams.targets import GOES_BACK

    if resume is not None:
        if source or begin or end or host or customer or vm or again or reason or dry_run:
            raise CommandError(
                "--resume: the checkpoint says the rest; give nothing else", Exit.USAGE, "usage"
            )
        left = read_checkpoint(resume)
        asyncio.run(
            _run(left.plan, left.progress, resume, as_json, nats_url, state_dir, resumed=True)
        )
        return
    stream = _stream(source)
    _check_target(stream, into, customer)
    factor = _factor(speed)
    meant = selection(host, customer, vm)
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


def _check_target(stream: str, into: str, customers: list[str] | None) -> None:
    from decisec.streams.targets import FILE_KINDS, GOES_BACK, TERMINAL
    from schemas.subjects import METRICS_REJECTED, VM_EVENTS

    words = ""
    if into in GOES_BACK:
        if stream != GOES_BACK[into]:
            words = f"--into: {into} takes messages of {GOES_BACK[into]} only"
    elif into != TERMINAL and Path(into).suffix not in FILE_KINDS:
        words = f"--into: collector, batcher, terminal or a file ({', '.join(FILE_KINDS)})"
    elif Path(into).suffix == ".parquet" and stream in (VM_EVENTS, METRICS_REJECTED):
        words = f"--into: .parquet is for samples; {stream} goes to .jsonl"
    if stream == METRICS_REJECTED and customers:
        words = "--customer: of what is refused nobody has said whose it is"
    if words:
        raise CommandError(words, Exit.USAGE, "usage")


def _factor(speed: str) -> float:
    if speed == "max":
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
        with _bar(plan, progress) as tell:
            await Replay(connection, unpaced, Nowhere(), progress=progress, told=tell).run()
    if as_json:
        show_json({"plan": plan, "would": progress, "discards_bytes": discarded})
        return
    show(f"would replay {plan.words()}:")
    _show_counts(progress)
    _warn(discarded, plan)


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
    from decisec.streams.acts import audited
    from decisec.streams.replay import Replay, overflow_bytes
    from decisec.streams.targets import GOES_BACK, TERMINAL
    from schemas.ids import new_id

    goes_back = plan.target in GOES_BACK
    with ExitStack() as exits:
        async with bus(nats_url, state_dir) as connection:
            target = _open(exits, plan, progress, connection, as_json, resumed=resumed)
            if goes_back and not resumed:
                _warn(await overflow_bytes(connection, plan), plan)
            if plan.target != TERMINAL:
                tell = exits.enter_context(_bar(plan, progress))
                if not plan.target.endswith(".parquet"):
                    tell = exits.enter_context(_kept(checkpoint, plan, tell))
            else:
                tell = _nothing
            work = Replay(connection, plan, target, progress=progress, told=tell)
            if goes_back:
                details = {"replay_id": str(plan.replay_id), "resumed": str(resumed).lower()}
                async with audited(
                    connection,
                    act_id=new_id() if resumed else plan.replay_id,
                    actor=operator(),
                    action="replay",
                    target=plan.words(),
                    reason=plan.reason,
                    details=details,
                ) as found:
                    try:
                        await work.run()
                    finally:
                        found |= {
                            "cursor": str(progress.cursor),
                            "messages": str(progress.messages),
                            "samples": str(progress.samples),
                        }
            else:
                await work.run()
    if plan.target == TERMINAL:
        return
    if as_json:
        show_json({"plan": plan, "done": progress})
    else:
        show(f"replayed {plan.words()}:")
        _show_counts(progress)


def _nothing(_progress: Progress) -> None:
    """To the terminal itself no progress is shown."""


def _open(
    exits: ExitStack, plan: Plan, progress: Progress, connection: Bus, as_json: bool, *,
    resumed: bool,
) -> Target:  # fmt: skip
    from decisec.streams.targets import (
        GOES_BACK,
        TERMINAL,
        BackOntoTheBus,
        Printed,
        json_lines,
        parquet,
    )

    if plan.target in GOES_BACK:
        return BackOntoTheBus(connection, plan.replay_id)
    if plan.target == TERMINAL:
        return Printed(plan.source, show_line if as_json else _print_row)
    path = Path(plan.target)
    if path.suffix == ".parquet":
        return exits.enter_context(parquet(path, plan.source))
    kept = progress.written_bytes if resumed else None
    return exits.enter_context(json_lines(path, plan.source, kept))


@contextmanager
def _kept(
    path: Path, plan: Plan, tell: Callable[[Progress], None]
) -> Iterator[Callable[[Progress], None]]:
    """Keeps the progress in a file for the length of the block; it goes when all is done."""
    import time

    from decisec.streams.checkpoint import Checkpoint, write_checkpoint

    saved_s = 0.0
    last: Progress | None = None

    def told(progress: Progress) -> None:
        nonlocal saved_s, last
        tell(progress)
        last = progress
        if time.monotonic() - saved_s >= _SAVE_EVERY_S:
            write_checkpoint(path, Checkpoint(plan=plan, progress=progress))
            saved_s = time.monotonic()

    try:
        yield told
    except BaseException:
        if last is not None:
            write_checkpoint(path, Checkpoint(plan=plan, progress=last))
        if path.exists():
            say(f"not done; to go on: decisec replay --resume {path}")
        raise
    path.unlink(missing_ok=True)


@contextmanager
def _bar(plan: Plan, progress: Progress) -> Iterator[Callable[[Progress], None]]:
    """A progress bar on stderr for the length of the block, if that is a terminal."""
    if not sys.stderr.isatty():
        yield _nothing
        return
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(),
        TextColumn("{task.fields[messages]} messages, {task.fields[rate]}/s, left"),
        TimeRemainingColumn(),
    )  # fmt: skip
    began = progress.messages
    with Bar(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(
            plan.source, total=plan.stretch.length, completed=progress.cursor - plan.first + 1,
            messages=progress.messages, rate=0,
        )  # fmt: skip

        def told(now: Progress) -> None:
            elapsed = bar.tasks[task].elapsed or 0.0
            rate = round((now.messages - began) / elapsed) if elapsed else 0
            bar.update(
                task, completed=now.cursor - plan.first + 1, messages=now.messages, rate=rate
            )

        yield told


def _show_counts(progress: Progress) -> None:
    from decisec.live.quantities import size

    show(f"  {progress.messages} messages, {progress.samples} samples, {size(progress.size_bytes)}")
    hosts = sorted(progress.hosts.items())
    shown = ", ".join(f"{host} {messages}" for host, messages in hosts[:20])
    if shown:
        more = f", and {len(hosts) - 20} more" if len(hosts) > 20 else ""
        show(f"  hosts: {shown}{more}")
    left_out = {
        "replays": progress.replays,
        "undecodable": progress.undecodable,
        "not selected": progress.other,
    }
    if any(left_out.values()):
        words = ", ".join(f"{number} {what}" for what, number in left_out.items() if number)
        show(f"  left out: {words}")


def _warn(discarded: int, plan: Plan) -> None:
    from decisec.live.quantities import size

    if discarded:
        say(
            f"warning: {plan.source} has no room for all of it and would discard about "
            f"{size(discarded)} of its oldest messages; replay less at a time, or give it room"
        )


def _print_row(row: dict[str, Any]) -> None:
    from decisec.cli.stream_lines import line

    show(line(row))
