"""Random frames for long: `just fuzz-network 1000000 SEED`."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

from tests.network.fuzz.run import Fuzz
from tests.network.suite import guarded
from tests.support.fabric import available


async def main(frames: int, seed: int) -> None:
    """Send so many, and say what became of them."""
    if reason := available():
        sys.exit(reason)
    began = time.monotonic()
    async with guarded() as (fabric, nft, _):
        tally = await Fuzz(fabric, nft, seed).run(frames)
    took_s = time.monotonic() - began
    sys.stdout.write(f"seed {seed}: {tally}, {took_s:.0f} s, nothing got where it must not\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("frames", type=int, nargs="?", default=1_000_000)
    parser.add_argument("seed", type=int, nargs="?", default=time.time_ns() & 0xFFFF_FFFF)
    arguments = parser.parse_args()
    asyncio.run(main(arguments.frames, arguments.seed))
