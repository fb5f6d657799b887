"""Progress of floods: lines where there is no terminal, bars where there is one."""

from __future__ import annotations

import asyncio
import io

from rich.console import Console

from tests.load.flood.telling import telling


async def test_without_a_terminal_there_is_a_line_for_each_change() -> None:
    """Counts, rate and note; nothing is said twice."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=False)
    async with asyncio.timeout(10), telling(console, line_every_s=0.01) as progress:
        sent = progress.add_task("sent", total=3000)
        progress.add_task("stored", total=None)
        progress.update(sent, completed=1200, note="at most 3 ms behind")
        while "1,200" not in out.getvalue():
            await asyncio.sleep(0.01)
        said = len(out.getvalue().splitlines())
        assert said == 2
        await asyncio.sleep(0.05)
        assert len(out.getvalue().splitlines()) == said
        progress.update(sent, completed=3000)
    first, second, last = out.getvalue().splitlines()
    assert first.startswith("sent: 1,200 of 3,000, ")
    assert first.endswith("/s, at most 3 ms behind")
    assert second.startswith("stored: 0, ")
    assert last.startswith("sent: 3,000 of 3,000, ")
    assert "\x1b" not in out.getvalue()


async def test_a_terminal_shows_bars() -> None:
    """With what is noted beside them."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    async with telling(console) as progress:
        bar = progress.add_task("stored", total=100)
        progress.update(bar, completed=100, note="12 whole")
    assert "100/100" in out.getvalue()
    assert "12 whole" in out.getvalue()
