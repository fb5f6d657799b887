"""`decisec flood commands`: the command line of a storm."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from decisec.cli import connection
from decisec.cli.exits import Exit, failure_of
from decisec.dev.interrupts import Interrupts
from runtime.telemetry import configure_logging
from tests.load.flood.commands.plan import DOORS, StormPlan
from tests.load.flood.commands.storm import Signals, Storm
from tests.load.flood.commands.ways import Address, given_ways, left_on_hosts, own_ways, words
from tests.load.flood.telling import telling
from tests.load.flood.words import add_options, chosen, hand_over

_HELP = {
    "lives": "VMs that live in all",
    "rate": "lives that begin in a second",
    "ramp_s": "time over which the rate grows from nothing",
    "burst": "so many begin at once, at the same rate",
    "at_once": "VMs that live at the same time, at most",
    "up_s": "how long a VM runs",
    "killed": "share of VMs that are deleted while they run",
    "through": f"the gateway's HTTP API, its door on the bus, or both: {', '.join(DOORS)}",
    "tries": "how often a command is sent that is refused for now (429, 503)",
    "within_s": "how long a command may take",
    "image": "what VMs boot",
    "memory_mib": "memory of each",
    "network": "each VM has a network interface",
    "seed": "of all that is random",
}


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    found = argparse.ArgumentParser(
        prog="decisec flood commands",
        description="Lets many VMs live shortly, and checks what became of each command and bill.",
        epilog="Exit codes: 0 all was carried out or refused in words, and billed to the unit; 1 "
        "something is missing or left; 2 wrong usage; 3 not reachable; 5 denied; 130 interrupted.",
    )
    add_options(found, StormPlan, _HELP)
    found.add_argument(
        "--own", action="store_true", help="start a stack of simulated VMs for it, and stop it"
    )
    found.add_argument(
        "--api-url", default=os.environ.get("DECISEC_API_URL", ""), help="or DECISEC_API_URL"
    )
    found.add_argument(
        "--nats-url", default=os.environ.get("DECISEC_NATS_URL", ""),
        help="or DECISEC_NATS_URL; the bus tells exactly when commands end, and what VMs counted",
    )  # fmt: skip
    found.add_argument(
        "--customer", default="", help="for whom to ask on the bus, if there is no token to tell"
    )
    found.add_argument(
        "--api-only", action="store_true", help="use nothing but the HTTP API, as customers do"
    )
    found.add_argument(
        "--state-dir", type=Path, default=connection.DEFAULT_STATE, metavar="DIR",
        help="of a `decisec dev`, if no address is given (default: .decisec)",
    )  # fmt: skip
    found.add_argument("--json", type=Path, metavar="FILE", help="write the report there, too")
    return found


def main(arguments: list[str]) -> int:
    """The command; returns its exit code. A token comes from DECISEC_TOKEN only."""
    options = parser().parse_args(arguments)
    plan = StormPlan(**chosen(StormPlan, options))
    try:
        plan.check()
    except ValueError as error:
        parser().error(str(error))
    address = Address(
        api_url=options.api_url,
        token=os.environ.get("DECISEC_TOKEN", ""),
        nats_url=options.nats_url,
        customer=options.customer,
        state_dir=options.state_dir,
        api_only=options.api_only,
    )
    configure_logging("flood", "warning")
    try:
        report = asyncio.run(_run(plan, None if options.own else address))
    except Exception as error:
        failure = failure_of(error)
        if failure is None:
            raise
        sys.stderr.write(f"error: {failure.message}\n")
        return int(failure.code)
    if report is None:
        return int(Exit.INTERRUPTED)
    hand_over(report, options.json)
    if report["interrupted"]:
        return int(Exit.INTERRUPTED)
    return int(Exit.OK if report["conserved"] else Exit.FAILED)


async def _run(plan: StormPlan, address: Address | None) -> dict[str, Any] | None:
    interrupts = Interrupts()
    signals = Signals(stop=interrupts.stop, hurry=interrupts.hurry)
    opened = own_ways(plan) if address is None else given_ways(plan, address)
    with interrupts.caught():
        async with opened as ways, telling() as progress:
            progress.console.print(f"through {words(ways.doors)}", highlight=False)
            storm = Storm(plan, ways, progress, signals)
            report = await storm.run()
            if report is None:
                progress.console.print(
                    f"left in a hurry: VMs with the label flood={storm.storm_id} may be there"
                )
            elif address is None and ways.bus is not None:
                for host, vms in (await left_on_hosts(ways.bus)).items():
                    report["problems"].append(f"host {host} says that it holds {vms} VMs")
                    report["conserved"] = False
            return report
