"""`python -m tests.chaos.metering`: what is metered survives whatever is done to the pipeline.

Two floods, one after the other, with what goes wrong in networks mixed in. Under the first one
nats-server, collector and batcher (with its embedded store) are killed by turns, a stream is full
for a while, and a host sends again all that it has sent. Under the second one the store is behind
ClickHouse's HTTP interface and answers with errors, late, half, or not at all. At the end each
sample must be stored once and each VM be billed to the unit; else the exit code is 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.progress import Progress

from runtime.bus import Bus
from runtime.publisher import Publisher
from runtime.reading import read_stream
from runtime.streams import apply, declared
from runtime.telemetry import configure_logging
from schemas.errors import MalformedMessageError
from schemas.frames import decode_frame
from schemas.ids import new_id
from schemas.subjects import METRICS_ENRICHED, METRICS_RAW, host_of_metrics, metrics_raw
from tests.load.flood.flood import flood
from tests.load.flood.plan import Plan
from tests.support.clickhouse_door import Door, clickhouse_door
from tests.support.stack import KillableStack, metering_stack

REPORT = Path(".decisec/chaos/metering.json")
PASSWORD = "correct horse: battery/staple"
PLAN = Plan(duplicates=0.02, reorder=0.02, late=0.01, malformed=0.01, skew_s=3600, step_s=3600)

_TOO_MANY_PARTS, _MEMORY_LIMIT, _SERVER_ERROR, _NO_DISK = 252, 241, 999, 243
_DOOR_FAULTS: tuple[tuple[str, Sequence[int | str]], ...] = (
    ("store answers 500", [_SERVER_ERROR] * 3),
    ("store has too many parts", [_TOO_MANY_PARTS] * 3),
    ("store is out of memory", [_MEMORY_LIMIT] * 2),
    ("store is out of disk", [_NO_DISK] * 2),
    ("store commits and says nothing", ["cut", "cut"]),
    ("store ends amid its answer", ["half", "half"]),
    ("store is slow", ["slow"]),
)

_MET_WITHIN_S = 30.0
_TROUBLED = 0.85
"""Share of a flood's time in which bad things begin."""

Act = Callable[[], Awaitable[None]]


class Besieger:
    """Does one bad thing after the other, by chance, until it is told to stop.

    Attributes:
        done: How often each has been done.
    """

    def __init__(self, acts: dict[str, Act], *, pause_s: tuple[float, float], seed: int) -> None:
        self.done: Counter[str] = Counter()
        self._acts = acts
        self._pause_s = pause_s
        self._chance = random.Random(seed)  # noqa: S311 - to be repeated

    async def run(self, seconds: float) -> None:
        """For so long; everything is whole again when it returns."""
        until_s = time.monotonic() + seconds
        names: list[str] = []
        while time.monotonic() < until_s:
            await asyncio.sleep(self._chance.uniform(*self._pause_s))
            # Each once before any of them twice.
            names = names or self._chance.sample(sorted(self._acts), len(self._acts))
            name = names.pop()
            await self._acts[name]()
            self.done[name] += 1


def killing(stack: KillableStack, name: str) -> Act:
    """SIGKILL, and a new start."""

    async def act() -> None:
        await stack.kill(name)
        await stack.start(name)

    return act


def filling(bus: Bus) -> Act:
    """A stream that takes nothing for some seconds, as on a full disk."""

    async def act() -> None:
        info = await bus.js.stream_info(METRICS_ENRICHED)
        full = max(1, info.state.messages)
        await bus.js.update_stream(info.config.evolve(max_msgs=full, discard="new"))
        await asyncio.sleep(3)
        await apply(bus, declared())
        await bus.js.update_stream(
            (await bus.js.stream_info(METRICS_ENRICHED)).config.evolve(max_msgs=-1)
        )

    return act


def resending(bus: Bus, chance: random.Random) -> Act:
    """All that one host has sent so far comes once more, under ids that no stream has seen."""

    async def act() -> None:
        info = await bus.js.stream_info(METRICS_RAW, subjects_filter="metrics.raw.>")
        subject = chance.choice(sorted(info.state.subjects or {}))
        publisher = Publisher(bus)
        sent = await read_stream(bus, METRICS_RAW, subject)
        async with asyncio.TaskGroup() as group:
            for message in sent:
                if _is_frame(message.data):
                    group.create_task(
                        publisher.publish(
                            metrics_raw(host_of_metrics(subject)),
                            message.data,
                            msg_id=f"again:{new_id()}",
                        ),
                        name="frame-again",
                    )

    return act


def _is_frame(data: bytes) -> bool:
    try:
        decode_frame(data)
    except MalformedMessageError:
        return False
    return True


def failing(door: Door, faults: Sequence[int | str]) -> Act:
    """The next inserts go wrong; returns once they have."""

    async def act() -> None:
        door.faults.extend(faults)
        until_s = time.monotonic() + _MET_WITHIN_S
        while door.faults and time.monotonic() < until_s:
            await asyncio.sleep(0.1)
        # What nobody has met by then must not fall on what comes next.
        door.faults.clear()

    return act


async def _besieged(stack: KillableStack, plan: Plan, besieger: Besieger) -> dict[str, Any]:
    async with stack.bus() as bus, asyncio.TaskGroup() as group:
        group.create_task(besieger.run(plan.seconds * _TROUBLED), name="besieger")
        with Progress(disable=True) as progress:
            return await flood(bus, plan, progress)


async def kill_parts(
    folder: Path, plan: Plan, *, pause_s: tuple[float, float], seed: int
) -> dict[str, Any]:
    """The first flood; its report, with `faults`."""
    async with metering_stack(folder / "killed") as stack, stack.bus() as bus:
        names = ("nats-server", "collector", "batcher")
        acts = {f"{name} killed": killing(stack, name) for name in names}
        acts["stream full"] = filling(bus)
        acts["old frames sent again"] = resending(bus, random.Random(seed))  # noqa: S311
        besieger = Besieger(acts, pause_s=pause_s, seed=seed)
        report = await _besieged(stack, plan, besieger)
    return {**report, "faults": dict(besieger.done)}


async def spoil_answers(
    folder: Path, plan: Plan, *, pause_s: tuple[float, float], seed: int
) -> dict[str, Any]:
    """The second flood; its report, with `faults`."""
    with clickhouse_door(folder / "server", password=PASSWORD) as door:
        async with metering_stack(
            folder / "spoiled", store_url=door.url, store_password=PASSWORD, store_path=""
        ) as stack:
            acts = {name: failing(door, faults) for name, faults in _DOOR_FAULTS}
            acts["batcher killed"] = killing(stack, "batcher")
            besieger = Besieger(acts, pause_s=pause_s, seed=seed)
            report = await _besieged(stack, plan, besieger)
    return {**report, "faults": dict(besieger.done)}


async def _run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    plan = replace(
        PLAN,
        hosts=arguments.hosts,
        vms=arguments.vms,
        seconds=arguments.seconds / 2,
        seed=arguments.seed,
    )
    reports = []
    for siege in (kill_parts, spoil_answers):
        sys.stderr.write(f"{siege.__name__.replace('_', ' ')} for {plan.seconds:g} s\n")
        with tempfile.TemporaryDirectory(prefix="decisec-chaos-") as folder:
            reports.append(await siege(Path(folder), plan, pause_s=(2.0, 8.0), seed=arguments.seed))
    return reports


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="tests.chaos.metering", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1800.0, help="in all (default: 1800)")
    parser.add_argument("--hosts", type=int, default=20)
    parser.add_argument("--vms", type=int, default=20, help="on each host (default: 20)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=REPORT)
    arguments = parser.parse_args()
    configure_logging("chaos", "error")
    reports = asyncio.run(_run(arguments))
    faults: Counter[str] = Counter()
    for report in reports:
        faults.update(report["faults"])
    summary = {
        "faults": dict(faults),
        "samples": sum(report["sent"]["samples"] for report in reports),
        "lost": sum(report["missing"] for report in reports),
        "duplicated": sum(report["invented"] for report in reports),
        "rejected": sum(sum(report["rejected"].values()) for report in reports),
        "misbilled": sum(report["misbilled"] for report in reports),
        "conserved": all(report["conserved"] for report in reports),
        "runs": reports,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(summary, indent=2) + "\n")
    short = {name: value for name, value in summary.items() if name != "runs"}
    problems = [problem for report in reports for problem in report["problems"]]
    sys.stdout.write(json.dumps({**short, "problems": problems}, indent=2) + "\n")
    return 0 if summary["conserved"] else 1


if __name__ == "__main__":
    sys.exit(main())
