"""How fast metering is, from a collector alone to the whole pipeline under load.

Each phase starts what it needs on loopback, and ends it. Without `--seconds` every phase takes as
long as its figure deserves (half an hour in all); with it, so long each: enough to see whether all
works. Figures go to `.decisec/bench/metering.json`; those of phases that were not run are null.

    python -m tests.load.bench_metering --phases collector,size --seconds 5
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import traceback
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from runtime.telemetry import configure_logging
from tests.load.flood.plan import Plan
from tests.load.machine import machine_facts
from tests.load.metering import baseline, batching, collecting, costs, figures, live

REPORT = Path(".decisec/bench/metering.json")
_SHORT_OUTAGE_S = 30.0
_LIVE_RATE = 20_000
_WIDTH = 120


@dataclass(frozen=True, slots=True)
class Run:
    """What a phase is told.

    Attributes:
        folder: A new one for each phase.
        seconds: How long it is to measure.
        outage_s: How long the store is to be away.
        hosts: That send in live phases.
        vms: On each of them.
    """

    folder: Path
    seconds: float
    outage_s: float
    hosts: int
    vms: int

    @property
    def plan(self) -> Plan:
        """A flood at live speed."""
        return Plan(hosts=self.hosts, vms=self.vms, seconds=self.seconds)


Phase = Callable[[Run, Progress], Awaitable[dict[str, Any]]]


async def _collector(run: Run, _: Progress) -> dict[str, Any]:
    return collecting.by_itself(run.seconds)


async def _through_nats(run: Run, _: Progress) -> dict[str, Any]:
    return await collecting.through_nats(run.folder, run.seconds)


async def _batcher(run: Run, _: Progress) -> dict[str, Any]:
    return await batching.batcher(run.seconds)


async def _baseline(run: Run, _: Progress) -> dict[str, Any]:
    return await baseline.baseline(run.folder, run.seconds)


async def _end_to_end(run: Run, progress: Progress) -> dict[str, Any]:
    return await live.end_to_end(run.folder, run.plan, progress)


async def _ceiling(run: Run, progress: Progress) -> dict[str, Any]:
    return await live.ceiling(run.folder, run.plan, progress)


async def _catch_up(run: Run, progress: Progress) -> dict[str, Any]:
    hosts = max(1, min(run.hosts, _LIVE_RATE // (run.vms * 10)))
    plan = Plan(hosts=hosts, vms=run.vms)
    return await live.catch_up(run.folder, plan, run.outage_s, progress)


async def _cost(run: Run, progress: Progress) -> dict[str, Any]:
    return await costs.costs(run.folder, run.seconds, run.hosts * run.vms, progress)


async def _size(run: Run, _: Progress) -> dict[str, Any]:
    return await batching.size(run.folder, run.seconds)


PHASES: dict[str, tuple[Phase, float]] = {
    "collector": (_collector, 5.0),
    "through-nats": (_through_nats, 4.0),
    "batcher": (_batcher, 10.0),
    "baseline": (_baseline, 10.0),
    "end-to-end": (_end_to_end, 300.0),
    "ceiling": (_ceiling, 20.0),
    "catch-up": (_catch_up, 600.0),
    "cost": (_cost, 20.0),
    "size": (_size, 600.0),
}
"""Each phase, and for how many seconds it measures; of `catch-up`, how long the outage is."""


def _bars(console: Console) -> Progress:
    columns = (TextColumn("  {task.description}"), BarColumn(), TaskProgressColumn(show_speed=True))
    return Progress(*columns, console=console, disable=not console.is_terminal, transient=True)


async def measure(
    names: list[str],
    *,
    seconds: float | None,
    outage_s: float | None,
    hosts: int,
    vms: int,
    report: Callable[[dict[str, Any]], None],
    console: Console,
) -> dict[str, Any]:
    """Run phases one after the other; one that fails is told, and the others go on.

    Args:
        names: Of `PHASES`.
        seconds: For each; None for each one's own.
        outage_s: None for what fits `seconds`.
        hosts: See `Run`.
        vms: Likewise.
        report: Called after each phase with what there is.
        console: For what people look at meanwhile.
    """
    details: dict[str, Any] = dict.fromkeys(PHASES)
    for name in names:
        phase, own_s = PHASES[name]
        length_s = own_s if seconds is None else seconds
        fitting_s = own_s if seconds is None else _SHORT_OUTAGE_S
        console.print(f"{name} ...")
        bars: AbstractContextManager[Progress] = _bars(console)
        with tempfile.TemporaryDirectory(prefix="bench-metering-") as folder, bars as progress:
            run = Run(
                Path(folder) / name,
                length_s,
                fitting_s if outage_s is None else outage_s,
                hosts,
                vms,
            )
            try:
                details[name] = await phase(run, progress)
            except Exception as error:  # noqa: BLE001 - hours of figures must not go with it
                console.print(f"{name} failed: {error!r}\n{traceback.format_exc()}", markup=False)
                details[name] = {"error": repr(error)}
        report(figures.summary(details, machine_facts()))
    return details


def _phases(text: str) -> list[str]:
    names = list(PHASES) if text == "all" else text.split(",")
    if unknown := [name for name in names if name not in PHASES]:
        raise argparse.ArgumentTypeError(f"no phase {unknown[0]}: take some of {', '.join(PHASES)}")
    return names


def main(words: list[str] | None = None) -> int:
    """The command; 1 if a phase failed or lost something."""
    parser = argparse.ArgumentParser(
        prog="just bench metering", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--phases", type=_phases, default="all", metavar="A,B",
        help=f"some of {', '.join(PHASES)} (default: all)",
    )  # fmt: skip
    parser.add_argument("--seconds", type=float, help="for each phase (default: each one's own)")
    parser.add_argument(
        "--outage",
        type=float,
        metavar="S",
        help="of the store (default: 600, or 30 with --seconds)",
    )
    parser.add_argument("--hosts", type=int, default=200, help="that send (default: 200)")
    parser.add_argument("--vms", type=int, default=100, help="on each host (default: 100)")
    parser.add_argument("--out", type=Path, default=REPORT, metavar="FILE")
    arguments = parser.parse_args(words)
    configure_logging("bench", "error")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)

    def report(found: dict[str, Any]) -> None:
        arguments.out.write_text(json.dumps(found, indent=2) + "\n")

    details = asyncio.run(
        measure(
            arguments.phases,
            seconds=arguments.seconds,
            outage_s=arguments.outage,
            hosts=arguments.hosts,
            vms=arguments.vms,
            report=report,
            console=Console(stderr=True),
        )
    )
    Console(width=_WIDTH).print(figures.table(details))
    sys.stdout.write(f"{arguments.out}\n")
    return 1 if any(map(_bad, details.values())) else 0


def _bad(found: dict[str, Any] | None) -> bool:
    if found is None:
        return False
    judged = [found, *found.get("fleets", ())]
    return "error" in found or any(one.get("conserved") is False for one in judged)


if __name__ == "__main__":
    sys.exit(main())
