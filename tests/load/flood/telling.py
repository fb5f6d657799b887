"""How far a flood has come: bars on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

_LINE_EVERY_S = 5.0


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        """So many a second."""
        return Text(f"{_rate(task):,}/s")


class _Note(ProgressColumn):
    def render(self, task: Task) -> Text:
        """What else there is to say of a task."""
        return Text(str(task.fields.get("note", "")))


@asynccontextmanager
async def telling(
    console: Console | None = None, *, line_every_s: float = _LINE_EVERY_S
) -> AsyncIterator[Progress]:
    """A progress whose tasks are shown on stderr while the block lasts.

    A task's field `note` stands at the end of its bar or line.
    """
    console = console or Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), _Rate(),
        TimeRemainingColumn(compact=True), _Note(),
    )  # fmt: skip
    if console.is_terminal:
        with Progress(*columns, console=console) as progress:
            yield progress
        return
    with Progress(*columns, console=console, disable=True) as progress:
        said: dict[int, str] = {}
        task = asyncio.create_task(_lines(progress, console, line_every_s, said), name="lines")
        try:
            yield progress
        finally:
            task.cancel()
            await asyncio.wait({task})
            _say(progress, console, said)


async def _lines(
    progress: Progress, console: Console, every_s: float, said: dict[int, str]
) -> None:
    while True:
        await asyncio.sleep(every_s)
        _say(progress, console, said)


def _say(progress: Progress, console: Console, said: dict[int, str]) -> None:
    """A line for each task that has changed since it was last told of."""
    for task in progress.tasks:
        note = task.fields.get("note", "")
        total = f" of {int(task.total):,}" if task.total is not None else ""
        counts = f"{task.description}: {int(task.completed):,}{total}"
        if said.get(task.id) != (key := f"{counts}{note}"):
            said[task.id] = key
            end = f", {note}" if note else ""
            console.print(f"{counts}, {_rate(task):,}/s{end}", markup=False, soft_wrap=True)


def _rate(task: Task) -> int:
    elapsed_s = task.finished_time or task.elapsed
    return round(task.completed / elapsed_s) if elapsed_s else 0
