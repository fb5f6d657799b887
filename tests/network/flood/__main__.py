"""Floods of each kind, for long enough to say what others feel: `just flood-network`.

Prints a table, and merges it into `.decisec/bench/network.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from contextlib import AsyncExitStack

from tests.load.bench_network import REPORT
from tests.network.flood.frames import KINDS
from tests.network.flood.victims import Felt, feel, flooding
from tests.network.suite import guarded
from tests.support.fabric import available


async def main(seconds: float) -> None:
    """Each kind in turn, with a quiet while before."""
    if reason := available():
        sys.exit(reason)
    figures = {}
    async with AsyncExitStack() as stack:
        fabric, _, _ = await stack.enter_async_context(guarded())
        os.sched_setaffinity(0, {0})
        sender = stack.enter_context(flooding(fabric))
        for kind in KINDS:
            quiet, felt = Felt(), Felt()
            feel(fabric, seconds, quiet)
            with sender.of(kind, felt):
                feel(fabric, seconds, felt)
            ratio = felt.quantile(0.99) / quiet.quantile(0.99)
            figures[kind] = {
                "frames_per_s": round(felt.sent / seconds),
                "lost": felt.lost,
                "quiet_p99_us": quiet.quantile(0.99),
                "p99_us": felt.quantile(0.99),
                "ratio": round(ratio, 2),
                "neighbours": felt.neighbours,
            }
            sys.stdout.write(f"{kind}: {json.dumps(figures[kind])}\n")
            sys.stdout.flush()
    known = json.loads(REPORT.read_text()) if REPORT.exists() else {}
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(known | {"floods": figures}, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each kind, and quiet")
    asyncio.run(main(parser.parse_args().seconds))
