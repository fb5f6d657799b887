"""The whole pipeline under live load: at one rate, at the highest, and after an outage."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.progress import Progress

from runtime.bus import Bus
from schemas.frames import FramesStored
from tests.load.flood.flood import flood
from tests.load.flood.plan import Plan
from tests.load.machine import Load, Watch
from tests.load.metering import stream
from tests.support.stack import START_ORDER, KillableStack, metering_stack

_PARTS = START_ORDER[:3]
_HELD_P99_MS = 2000
_BEHIND_MS = 500
_FIRST_HZ = 5.0
_MOST_HZ = 160.0
_LEAST_HZ = 0.5
_CLOSE = 1.15
"""The search ends when what holds and what does not are this near."""
_BEFORE_S = 5.0
_LIVE_MS = 2000
"""A flush without an older frame: the batcher has caught up."""


async def end_to_end(folder: Path, plan: Plan, progress: Progress) -> dict[str, Any]:
    """A flood at its rate through real processes."""
    async with metering_stack(folder) as stack, stack.bus() as bus:
        report, load = await _flooded(stack, bus, plan, progress)
    return {
        "wanted_samples_per_s": round(plan.rate),
        "samples_per_s": report["samples_per_s"],
        "seconds": report["sent_in_s"],
        "samples": plan.samples,
        "lost": report["missing"],
        "conserved": report["conserved"],
        "lag_ms": report["lag_ms"],
        "flood_behind_ms": report["sent"]["behind_ms"],
        "cpu": load.cpu,
        "others_cpu": load.others,
        "rss_mib_each_minute": load.rss_mib,
    }


async def ceiling(folder: Path, plan: Plan, progress: Progress) -> dict[str, Any]:
    """Twice the rate until it does not hold, then halfway between, until both are close."""
    steps: list[dict[str, Any]] = []
    held = too_much = None
    async with metering_stack(folder) as stack, stack.bus() as bus:
        while (hz := next_hz(held, too_much)) is not None:
            step = await _step(stack, bus, replace(plan, hz=hz), progress)
            steps.append(step)
            if step["held"]:
                held = hz
            else:
                too_much = hz
    best = max((s["samples_per_s"] for s in steps if s["held"]), default=0)
    failed = [s for s in steps if not s["held"]]
    return {
        "samples_per_s": best,
        "saturated_first": min(failed, key=lambda s: float(s["wanted_samples_per_s"]))["saturated"]
        if failed
        else None,
        "steps": steps,
    }


def next_hz(held: float | None, too_much: float | None) -> float | None:
    """Ticks a second to try next; None once what holds and what does not are near.

    Args:
        held: The highest that held.
        too_much: The lowest that did not.
    """
    if too_much is None:
        following = _FIRST_HZ if held is None else 2 * held
        return following if following <= _MOST_HZ else None
    if held is None:
        return too_much / 2 if too_much > _LEAST_HZ else None
    return (held + too_much) / 2 if too_much > held * _CLOSE else None


async def _step(stack: KillableStack, bus: Bus, plan: Plan, progress: Progress) -> dict[str, Any]:
    report, load = await _flooded(stack, bus, plan, progress)
    lag_ms, behind_ms = report["lag_ms"], report["sent"]["behind_ms"]
    return {
        "wanted_samples_per_s": round(plan.rate),
        "samples_per_s": report["samples_per_s"],
        "held": report["conserved"]
        and behind_ms <= _BEHIND_MS
        and lag_ms.get("p99", _HELD_P99_MS + 1) <= _HELD_P99_MS,
        "lag_ms": lag_ms,
        "flood_behind_ms": behind_ms,
        "conserved": report["conserved"],
        "cpu": load.cpu,
        "others_cpu": load.others,
        "saturated": "flood" if behind_ms > _BEHIND_MS else load.saturated(os.cpu_count() or 1),
    }


async def _flooded(
    stack: KillableStack, bus: Bus, plan: Plan, progress: Progress
) -> tuple[dict[str, Any], Load]:
    watch = Watch({**stack.pids(*_PARTS), "flood": os.getpid()}, part_s=min(60.0, plan.seconds / 4))
    report = await flood(bus, plan, progress, during=watch)
    return report, watch.load()


async def catch_up(folder: Path, plan: Plan, outage_s: float, progress: Progress) -> dict[str, Any]:
    """How fast a backlog is worked off beside live traffic, as multiple of the live rate.

    The batcher is away, and its embedded store with it. From its being ready again to the first
    flush that holds live frames only.
    """
    after_s = max(10.0, outage_s / 4)
    plan = replace(plan, seconds=_BEFORE_S + outage_s + after_s)
    async with metering_stack(folder) as stack, stack.bus() as bus, stream.listening(bus) as ear:
        away = _Away(stack, ear, outage_s)
        report = await flood(bus, plan, progress, during=away.block())
    back = ear.heard[away.heard_before :]
    caught = next((n for n, m in enumerate(back) if _live(m)), len(back) - 1)
    took_s = back[caught].stored_at_ns / 1e9 - away.ready_s
    rows = sum(message.rows for message in back[: caught + 1])
    rows_per_s = stream.rate(rows, took_s)
    return {
        "outage_s": outage_s,
        "live_samples_per_s": round(plan.rate),
        "rows": rows,
        "seconds": round(took_s, 2),
        "start_s": round(away.ready_s - away.started_s, 2),
        "rows_per_s": rows_per_s,
        "ratio": round(rows_per_s / plan.rate, 1),
        "live_went_on": took_s < after_s and _live(back[caught]),
        "lost": report["missing"],
        "conserved": report["conserved"],
    }


def _live(message: FramesStored) -> bool:
    return max(message.lags_ms, default=0) <= _LIVE_MS


class _Away:
    """Takes the batcher away for a while.

    Attributes:
        heard_before: How many flushes there were before.
        started_s: When it was started again, Unix s.
        ready_s: When it was ready again.
    """

    def __init__(self, stack: KillableStack, ear: stream.Ear, outage_s: float) -> None:
        self.heard_before = 0
        self.started_s = self.ready_s = 0.0
        self._stack = stack
        self._ear = ear
        self._outage_s = outage_s

    @asynccontextmanager
    async def block(self) -> AsyncIterator[None]:
        """The outage, at the same time as what is in the block."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._run(), name="outage")
            yield

    async def _run(self) -> None:
        await asyncio.sleep(_BEFORE_S)
        await self._stack.stop("batcher")
        self.heard_before = len(self._ear.heard)
        await asyncio.sleep(self._outage_s)
        self.started_s = time.time()
        await self._stack.start("batcher")
        self.ready_s = time.time()
