"""`python -m tests.load.flood`: floods a deployment with metrics, and checks what became of them.

Hosts and VMs that do not exist send frames, as agents would, with what goes wrong in real networks
mixed in on demand. At the end every sample must be stored once, every VM be billed to the unit and
all rubbish be set aside; exit code 1 if not. `--own` starts nats-server, collector and batcher for
it; else it is a running `decisec dev` or the bus of DECISEC_NATS_URL, whose credentials must allow
writing VM records and frames.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from decisec.cli import connection
from decisec.cli.exits import CommandError, Exit
from runtime.bus import Bus
from runtime.telemetry import configure_logging
from tests.load.flood.flood import flood
from tests.load.flood.plan import MAX_VMS, Plan
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
_SHARES = ("duplicates", "reorder", "late", "malformed")


def plan_of(arguments: argparse.Namespace) -> Plan:
    """The plan, checked.

    Raises:
        ValueError: It cannot be done.
    """
    plan = Plan(**{field.name: getattr(arguments, field.name) for field in fields(Plan)})
    zero_or_more = (plan.ramp_s, plan.skew_s, plan.step_s)
    if min(plan.hosts, plan.vms, plan.seconds, plan.hz) <= 0 or min(zero_or_more) < 0:
        raise ValueError("numbers must be positive")
    if plan.hosts * plan.vms > MAX_VMS:
        raise ValueError(f"at most {MAX_VMS} VMs in all")
    if any(not 0 <= getattr(plan, share) <= 1 for share in _SHARES) or plan.late + plan.reorder > 1:
        raise ValueError("shares lie between 0 and 1, `late` and `reorder` together as well")
    return plan


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
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TaskProgressColumn(show_speed=True), TimeRemainingColumn(),
    )  # fmt: skip
    console = Console(stderr=True)
    async with _bus(arguments) as bus:
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            return await flood(bus, plan, progress, keep=arguments.keep)


def main(words: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="decisec flood",
        description="Floods a deployment with metrics, and checks what became of them.",
    )
    for field in fields(Plan):
        option = f"--{field.name.replace('_', '-')}"
        if field.type == "bool":
            parser.add_argument(option, action="store_true", help=_HELP[field.name])
        else:
            parser.add_argument(
                option, type=type(field.default), default=field.default,
                help=f"{_HELP[field.name]} (default: {field.default})",
            )  # fmt: skip
    parser.add_argument("--own", action="store_true", help="start a pipeline for it")
    parser.add_argument("--nats-url", default=os.environ.get("DECISEC_NATS_URL", ""))
    parser.add_argument(
        "--state-dir", type=Path, default=connection.DEFAULT_STATE, metavar="DIR",
        help="of a `decisec dev`, if no address is given (default: .decisec)",
    )  # fmt: skip
    parser.add_argument("--keep", action="store_true", help="leave the VMs' records there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there, too")
    arguments = parser.parse_args(words)
    try:
        plan = plan_of(arguments)
    except ValueError as error:
        parser.error(str(error))
    configure_logging("flood", "warning")
    try:
        report = asyncio.run(_run(arguments, plan))
    except CommandError as error:
        sys.stderr.write(f"error: {error}\n")
        return int(error.failure.code)
    except KeyboardInterrupt:
        return int(Exit.INTERRUPTED)
    text = json.dumps(report, indent=2)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")
    sys.stdout.write(text + "\n")
    return 0 if report["conserved"] else 1


if __name__ == "__main__":
    sys.exit(main())
