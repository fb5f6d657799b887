"""How far a replay has come: in a file to go on from, as a bar, and in words at its end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from decisec.cli.output import console, say, show_text

if TYPE_CHECKING:
    from decisec.streams.checkpoint import Plan, Progress

_SAVE_EVERY_S = 0.5


def no_progress(_progress: Progress) -> None:
    """To the terminal itself no progress is shown."""


@contextmanager
def kept_progress(
    path: Path, plan: Plan, progress: Progress, tell: Callable[[Progress], None]
) -> Iterator[Callable[[Progress], None]]:
    """Keeps the progress in a file for the length of the block; it goes when all is done."""
    import time

    from decisec.streams.checkpoint import Checkpoint, write_checkpoint

    def save() -> float:
        write_checkpoint(path, Checkpoint(plan=plan, progress=progress))
        return time.monotonic()

    # Before anything is done: where no checkpoint can be written, nothing is begun.
    saved_s = save()

    def told(now: Progress) -> None:
        nonlocal saved_s
        tell(now)
        if time.monotonic() - saved_s >= _SAVE_EVERY_S:
            saved_s = save()

    try:
        yield told
    except BaseException:
        save()
        say(f"not done; to go on: decisec replay --resume {path}")
        raise
    path.unlink(missing_ok=True)


@contextmanager
def progress_bar(plan: Plan, progress: Progress) -> Iterator[Callable[[Progress], None]]:
    """A progress bar on stderr for the length of the block, if that is a terminal."""
    if not sys.stderr.isatty():
        yield no_progress
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


def show_counts(progress: Progress) -> None:
    """Say what went to the target, and what was left out."""
    from decisec.live.quantities import size

    show_text(
        f"  {progress.messages} messages, {progress.samples} samples, {size(progress.size_bytes)}"
    )
    hosts = sorted(progress.hosts.items())
    shown = ", ".join(f"{host} {messages}" for host, messages in hosts[:20])
    if shown:
        more = f", and {len(hosts) - 20} more" if len(hosts) > 20 else ""
        show_text(f"  hosts: {shown}{more}")
    left_out = {
        "replays": progress.replays,
        "undecodable": progress.undecodable,
        "not selected": progress.other,
        "discarded by the stream before they were read": progress.gone,
    }
    if any(left_out.values()):
        words = ", ".join(f"{number} {what}" for what, number in left_out.items() if number)
        show_text(f"  left out: {words}")


def warn_of_overflow(discarded: int, plan: Plan) -> None:
    """Say how many bytes the stream would discard for it, if any."""
    from decisec.live.quantities import size

    if discarded:
        say(
            f"warning: {plan.source} has no room for all of it and would discard about "
            f"{size(discarded)} of its oldest messages; replay less at a time, or give it room"
        )
