"""`python -m tests.chaos.network`: kills an agent at every step of connecting VMs.

Before and after each call that changes something in the kernel's network: of a VM's life, of the
start after such a death, and of the first start on a host. Then at random amid many VMs. Last, the
packet suite runs on the fabric that has seen it all. See `tests.chaos.connected_siege`.

Writes what it came to. If anything was lost, has leaked or got through it exits 1, and keeps the
agent's log.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from tests.chaos.besieging import besieging
from tests.chaos.connected_siege import SPECS, ConnectedSiege, Step
from tests.chaos.first_starts import FirstStarts
from tests.chaos.intruder import intruder
from tests.chaos.toll import Toll
from tests.network import real
from tests.network.cases import CASES
from tests.support.agents import Client
from tests.support.connected_agent import Surroundings, lack, surroundings
from tests.support.hypervisors import Lab, open_lab
from tests.support.nats import bus_with_streams
from tests.support.wires import IPV4, silence
from vm_agent.data_dir import identity

Die = Callable[[], Awaitable[bool]]


class Count:
    """How many deaths came about, by what they were in; says how far it is."""

    def __init__(self, toll: Toll, share: tuple[int, int]) -> None:
        self.by_kind: dict[str, dict[str, int]] = {}
        self._share = share
        self._toll = toll
        self._began = time.monotonic()
        self._told = len(toll.problems)

    async def run(self, kind: str, deaths: Iterable[Die]) -> None:
        """Die one's share of these deaths."""
        counts = self.by_kind.setdefault(kind, {"wished": 0, "died": 0, "problems": 0})
        first, every = self._share
        for die in islice(deaths, first - 1, None, every):
            counts["wished"] += 1
            counts["died"] += await die()
            problems = self._toll.problems
            counts["problems"] += len(problems) - self._told
            sys.stderr.write(
                f"\r{kind}: {counts['died']} of {counts['wished']} deaths, "
                f"{len(problems)} problems, {time.monotonic() - self._began:.0f} s "
            )
            for problem in problems[self._told :]:
                sys.stderr.write(f"\n{problem}\n")
            self._told = len(problems)
        sys.stderr.write("\n")


async def _besiege(lab: Lab, given: argparse.Namespace, toll: Toll) -> dict[str, Any]:
    """All of it, on one agent and on as many that start first."""
    count = Count(toll, given.share)
    with tempfile.TemporaryDirectory(prefix="decisec-chaos-") as name:
        folder = Path(name)
        async with surroundings() as around:
            if "first" in given.parts:
                await _first_starts(lab, folder, around, count, toll)
            try:
                wrong = await _lives(lab, folder, given, around, count, toll)
            finally:
                log = folder / "agent.log"
                if log.exists():
                    # What it was about is in there, and the folder goes.
                    given.out.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(log, given.out.with_suffix(".log"))
    toll.problems += wrong
    return {"deaths": count.by_kind, "packet_cases_wrong": len(wrong)}


async def _first_starts(
    lab: Lab, folder: Path, around: Surroundings, count: Count, toll: Toll
) -> None:
    (folder / "first").mkdir()
    async with bus_with_streams(folder / "first-nats") as (server, bus):
        first = FirstStarts(folder / "first", server.url, lab, around, Client(bus), toll)
        steps = await first.list_steps()
        await count.run("first start", (partial(first.die_at, step) for step in steps))


async def _lives(
    lab: Lab,
    folder: Path,
    given: argparse.Namespace,
    around: Surroundings,
    count: Count,
    toll: Toll,
) -> list[str]:
    settings = {**around.settings, "net_ipv4": str(IPV4)}
    async with besieging(
        ConnectedSiege, folder, lab, given.driver, seed=given.seed, network=settings
    ) as made:
        made.toll = toll
        await made.settle_in(1)
        with intruder(folder / "agent", around, made.bystander) as one:
            made.let_in(one)
            for part in given.parts:
                if part in _PARTS:
                    await _PARTS[part](made, given, count)
            await made.conclude()
        return await _packets(folder / "agent", around)


async def _each_step(made: ConnectedSiege, _: argparse.Namespace, count: Count) -> None:
    for spec in SPECS:
        steps = await made.list_network_steps(spec)
        await count.run(f"life, {spec}", (partial(made.die_at, step) for step in steps))


async def _each_step_of_the_next_start(
    made: ConnectedSiege, _: argparse.Namespace, count: Count
) -> None:
    for spec in SPECS:
        for first in last_of_each(await made.list_network_steps(spec)):
            again = await made.list_restart_steps(first)
            twice = (partial(made.die_twice, first, second) for second in again)
            await count.run(f"start after {first}", twice)


async def _in_crowds(made: ConnectedSiege, given: argparse.Namespace, count: Count) -> None:
    steps = await made.list_network_steps("open", given.crowd)
    named = [step for step in steps if step.weighty and step.times in (1, 2)]
    deaths = (partial(made.die_at, step) for step in named)
    await count.run(f"{given.crowd} VMs at once, named steps", deaths)


async def _at_random(made: ConnectedSiege, given: argparse.Namespace, count: Count) -> None:
    deaths = (partial(made.die_in_a_crowd, given.crowd) for _ in range(given.crowds))
    await count.run(f"{given.crowd} VMs at once, random", deaths)


_PARTS = {
    "lives": _each_step,
    "again": _each_step_of_the_next_start,
    "crowds": _in_crowds,
    "random": _at_random,
}


def last_of_each(steps: Iterable[Step]) -> list[Step]:
    """Of weighty steps of each name the last one, after it was done."""
    last = {step.name: step for step in steps if step.weighty and step.name.startswith("after")}
    return list(last.values())


async def _packets(data_dir: Path, around: Surroundings) -> list[str]:
    """The packet suite on the fabric that is there; what is wrong."""
    await silence(around.host)
    cases = list(filter(real.is_about_it, CASES))
    async with real.suite_on(real.layout_of(identity(data_dir)), around.host) as suite:
        wrong = [problem for case in cases if (problem := await suite.wrong(case))]
    sys.stderr.write(f"{len(cases)} cases of the packet suite, {len(wrong)} wrong\n")
    return wrong


def _share(text: str) -> tuple[int, int]:
    first, _, every = text.partition("/")
    return int(first), int(every)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="tests.chaos.network", description=__doc__)
    parser.add_argument("--driver", default="firecracker")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--crowd", type=int, default=8, help="VMs at once (default: 8)")
    parser.add_argument("--crowds", type=int, default=10, help="so often (default: 10)")
    all_parts = ["first", *_PARTS]
    parser.add_argument(
        "--parts", nargs="+", choices=all_parts, default=all_parts, help="all (default), or some"
    )
    parser.add_argument(
        "--share", type=_share, default=(1, 1), help="2/5: of every five deaths the second"
    )
    parser.add_argument("--out", type=Path, default=Path(".decisec/chaos/network.json"))
    given = parser.parse_args()
    if reason := lack():
        sys.exit(reason)
    toll = Toll()
    with open_lab() as lab:
        found = asyncio.run(_besiege(lab, given, toll))
    report = {"driver": given.driver, "seed": given.seed, **found, **toll.report()}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report, indent=2) + "\n")
    sys.stdout.write(json.dumps({k: v for k, v in report.items() if k != "steps"}, indent=2) + "\n")
    return 0 if toll.clean else 1


if __name__ == "__main__":
    sys.exit(main())
