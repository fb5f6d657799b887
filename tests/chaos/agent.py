"""`python -m tests.chaos.agent`: kills an agent 200 times; see `tests.chaos.siege`.

Writes what it came to, and exits 1 if anything was lost or has leaked.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

from tests.chaos.siege import siege
from tests.chaos.toll import Toll
from tests.support.hypervisors import Lab, open_lab

_WRITERS = 2


async def _besiege(lab: Lab, driver: str, kills: int, seed: int) -> Toll:
    with tempfile.TemporaryDirectory(prefix="decisec-chaos-") as folder:
        async with siege(Path(folder), lab, driver, seed=seed) as made:
            await made.settle_in(_WRITERS)
            steps = await made.list_steps()
            starts = await made.list_start_steps()
            began = time.monotonic()
            told = 0
            # Each named step of the work and of the start, then chance.
            deaths = deque(
                [*((made.die, s) for s in steps), *((made.die_again, s) for s in starts)]
            )
            while made.toll.kills < kills:
                if deaths:
                    die, step = deaths.popleft()
                    await die(step)
                else:
                    await made.die(None)
                problems = made.toll.problems
                sys.stderr.write(
                    f"\r{made.toll.kills} of {kills} kills, {len(problems)} problems, "
                    f"{time.monotonic() - began:.0f} s "
                )
                for problem in problems[told:]:
                    sys.stderr.write(f"\n{problem}\n")
                told = len(problems)
            sys.stderr.write("\n")
            await made.conclude()
            return made.toll


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="tests.chaos.agent", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--driver", default="firecracker")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(".decisec/chaos/agent.json"))
    given = parser.parse_args()
    with open_lab() as lab:
        driver = given.driver if lab.probes[given.driver].works else "simulator"
        toll = asyncio.run(_besiege(lab, driver, given.kills, given.seed))
    report = {"driver": driver, "seed": given.seed, **toll.report()}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report, indent=2) + "\n")
    sys.stdout.write(json.dumps({k: v for k, v in report.items() if k != "steps"}, indent=2) + "\n")
    return 0 if toll.clean else 1


if __name__ == "__main__":
    sys.exit(main())
