"""`python -m tests.chaos.fuzz_agent`: sends an agent a million bad messages; see `fuzzing`.

Writes what it came to. If anything was done for one of them, lost, miscounted or has leaked it
exits 1, and keeps the agent's log.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos.fuzzing.run import Plan, fuzz_agent
from tests.support.hypervisors import open_lab


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="tests.chaos.fuzz_agent", description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000, help="default: a million")
    parser.add_argument("--driver", default="simulator")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(".decisec/chaos/fuzz-agent.json"))
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with open_lab() as lab, tempfile.TemporaryDirectory(prefix="decisec-fuzz-") as folder:
        lab.require(given.driver)
        binary = str(lab.firecracker or "") if given.driver == "firecracker" else ""
        plan = Plan(given.driver, given.messages, given.seed, firecracker=binary)
        finished = False
        try:
            report = asyncio.run(fuzz_agent(Path(folder), lab.image.kernel, plan, _say))
            finished = not report["problems"]
        finally:
            if not finished:
                shutil.copy(Path(folder) / "agent.log", given.out.with_suffix(".log"))
    report.pop("firecracker")
    given.out.write_text(json.dumps(report, indent=2) + "\n")
    shown = {**report, "problems": report["problems"][:20]}
    sys.stdout.write(json.dumps(shown, indent=2) + "\n")
    return 0 if finished else 1


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
