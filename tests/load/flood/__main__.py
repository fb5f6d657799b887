"""`python -m tests.load.flood`: floods a deployment, and checks what became of all of it.

Hosts and VMs that do not exist send frames, as agents would, with what goes wrong in real networks
mixed in on demand. At the end every sample must be stored once, every VM be billed to the unit and
all rubbish be set aside; exit code 1 if not. `--own` starts nats-server, collector and batcher for
it; else it is a running `decisec dev` or the bus of DECISEC_NATS_URL, whose credentials must allow
writing VM records and frames. With `commands` as first word it is a storm of commands instead.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from decisec.cli import connection
from decisec.cli.exits import Exit, failure_of
from runtime.bus import Bus
from runtime.telemetry import configure_logging
from tests.load.flood.commands.command import main as commands
from tests.load.flood.flood import flood
from tests.load.flood.plan import Plan
from tests.load.flood.telling import telling
from tests.load.flood.words import add_options, chosen, hand_over
from tests.support.stack import metering_stack

_HELP = {
    "hosts": "hosts that send",
    "vms": "VMs on each host",
    "seconds": "at full speed",
    "hz": "ticks a second of each host; above 10 they catch up",
    "ramp_s": "time over which hosts begin",
    "burst": "every tenth second is sent at once",
    "duplicates": "share of frames sent twice",
    "reorder": "share of frames that come after successors",
    "late": "share of frames up to 10 s late",
    "malformed": "share of frames besides which rubbish is sent",
    "skew_s": "how far one host's clock is behind",
    "step_s": "how far one host's clock is stepped forth and back",
    "seed": "of all that is random",
}


@asynccontextmanager
async def _bus(arguments: argparse.Namespace) -> AsyncIterator[Bus]:
    if arguments.own:
        with tempfile.TemporaryDirectory(prefix="decisec-flood-") as folder:
            async with metering_stack(Path(folder)) as stack, stack.bus() as bus:
                yield bus
    else:
        async with connection.bus(arguments.nats_url, arguments.state_dir) as bus:
            yield bus


async def _run(arguments: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    async with _bus(arguments) as bus, telling() as progress:
        return await flood(bus, plan, progress, keep=arguments.keep)


def main(words: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    words = sys.argv[1:] if words is None else words
    if words[:1] == ["commands"]:
        return commands(words[1:])
    parser = argparse.ArgumentParser(
        prog="decisec flood",
        description="Floods a deployment with metrics, and checks what became of them. "
        "`decisec flood commands --help` tells of storms of commands.",
    )
    add_options(parser, Plan, _HELP)
    parser.add_argument("--own", action="store_true", help="start a pipeline for it")
    parser.add_argument("--nats-url", default=os.environ.get("DECISEC_NATS_URL", ""))
    parser.add_argument(
        "--state-dir", type=Path, default=connection.DEFAULT_STATE, metavar="DIR",
        help="of a `decisec dev`, if no address is given (default: .decisec)",
    )  # fmt: skip
    parser.add_argument("--keep", action="store_true", help="leave the VMs' records there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there, too")
    arguments = parser.parse_args(words)
    plan = Plan(**chosen(Plan, arguments))
    try:
        plan.check()
    except ValueError as error:
        parser.error(str(error))
    configure_logging("flood", "warning")
    try:
        report = asyncio.run(_run(arguments, plan))
    except KeyboardInterrupt:
        return int(Exit.INTERRUPTED)
    except Exception as error:
        failure = failure_of(error)
        if failure is None:
            raise
        sys.stderr.write(f"error: {failure.message}\n")
        return int(failure.code)
    hand_over(report, arguments.json)
    return int(Exit.OK if report["conserved"] else Exit.FAILED)


if __name__ == "__main__":
    sys.exit(main())
