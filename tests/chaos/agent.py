"""`python -m tests.chaos.agent`: kills an agent at least 200 times; see `tests.chaos.siege`.

Once at each named step of the work, once at each of the start after a death, and at random.

Writes what it came to. If anything was lost or has leaked it exits 1, and keeps the agent's log.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from tests.chaos.besieging import besieging
from tests.chaos.siege import Siege
from tests.chaos.toll import Toll
from tests.support.hypervisors import Lab, open_lab

_WRITERS = 2
_RANDOM_DEATHS = 30
"""At least so many, however many steps have a name."""


async def _besiege(lab: Lab, driver: str, kills: int, seed: int, log: Path) -> Toll:
    with tempfile.TemporaryDirectory(prefix="decisec-chaos-") as folder:
        async with besieging(Siege, Path(folder), lab, driver, seed=seed) as made:
            await made.settle_in(_WRITERS)
            steps = await made.list_steps()
            starts = await made.list_start_steps()
            began = time.monotonic()
            told, finished = 0, False
            named = len(steps) + 2 * len(starts)
            by_chance = max(_RANDOM_DEATHS, kills - named)
            deaths = [
                *(partial(made.die, step) for step in steps),
                *(partial(made.die_again, step) for step in starts),
                *(partial(made.die, None) for _ in range(by_chance)),
            ]
            try:
                for die in deaths:
                    await die()
                    problems = made.toll.problems
                    sys.stderr.write(
                        f"\r{made.toll.kills} of {named + by_chance} kills, "
                        f"{len(problems)} problems, {time.monotonic() - began:.0f} s "
                    )
                    for problem in problems[told:]:
                        sys.stderr.write(f"\n{problem}\n")
                    told = len(problems)
                sys.stderr.write("\n")
                await made.conclude()
                finished = True
            finally:
                if made.toll.problems or not finished:
                    # What it was about is in there, and the folder goes.
                    log.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(Path(folder) / "agent.log", log)
            return made.toll


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="tests.chaos.agent", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="at least (default: 200)")
    parser.add_argument("--driver", default="firecracker")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(".decisec/chaos/agent.json"))
    given = parser.parse_args()
    with open_lab() as lab:
        driver = given.driver if lab.probes[given.driver].works else "simulator"
        toll = asyncio.run(
            _besiege(lab, driver, given.kills, given.seed, given.out.with_suffix(".log"))
        )
    report = {"driver": driver, "seed": given.seed, **toll.report()}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report, indent=2) + "\n")
    sys.stdout.write(json.dumps({k: v for k, v in report.items() if k != "steps"}, indent=2) + "\n")
    return 0 if toll.clean else 1


if __name__ == "__main__":
    sys.exit(main())
