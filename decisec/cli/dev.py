"""`decisec dev` and `decisec demo`: the whole stack on this machine."""

from __future__ import annotations

import asyncio
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from decisec.cli.connection import DEFAULT_STATE
from decisec.cli.exits import EPILOG, CommandError, Exit
from decisec.cli.output import Json, say, show_json

if TYPE_CHECKING:
    from decisec.dev.interrupts import Interrupts
    from decisec.dev.stack import StackOptions


class DriverName(StrEnum):
    """Hypervisors that can be asked for."""

    AUTO = "auto"
    FIRECRACKER = "firecracker"
    CLOUD_HYPERVISOR = "cloud-hypervisor"
    QEMU = "qemu"
    SIMULATOR = "simulator"


StateDirectory = Annotated[
    Path,
    typer.Option("--state-dir", help="Where everything is kept: data, logs, key.", file_okay=False),
]
Driver = Annotated[
    DriverName, typer.Option(help="Hypervisor; auto takes the best one that works here.")
]
ApiPort = Annotated[int, typer.Option(min=0, max=65535, help="Port of the API; 0: a free one.")]
NatsPort = Annotated[int, typer.Option(min=0, max=65535, help="Port of NATS; 0: a free one.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog=EPILOG)(dev)
    app.command(epilog=EPILOG)(demo)


def dev(
    state_dir: StateDirectory = DEFAULT_STATE,
    driver: Driver = DriverName.AUTO,
    api_port: ApiPort = 0,
    nats_port: NatsPort = 0,
    customer: Annotated[str, typer.Option(help="Whose token is printed.")] = "demo",
    as_json: Json = False,
) -> int:
    """Run the whole stack here until Ctrl-C; a second Ctrl-C hurries."""
    from decisec.dev.stack import StackOptions

    _check_customer(customer)
    options = StackOptions(
        state_dir=state_dir,
        driver=driver.value,
        api_port=api_port,
        nats_port=nats_port,
        customer=customer,
    )
    return asyncio.run(_dev(options, as_json=as_json))


async def _dev(options: StackOptions, *, as_json: bool) -> int:
    from decisec.dev.errors import ChildDiedError
    from decisec.dev.interrupts import Interrupts

    interrupts = Interrupts()
    up = asyncio.Event()
    with interrupts.caught():
        try:
            await interrupts.run(_stay(options, interrupts, up, as_json=as_json))
        except ChildDiedError as error:
            for line in error.log_tail:
                say(f"  {error.name} | {line}")
            raise
    # Once the stack is up, Ctrl-C is how this command ends.
    return Exit.OK if up.is_set() else Exit.INTERRUPTED


async def _stay(
    options: StackOptions, interrupts: Interrupts, up: asyncio.Event, *, as_json: bool
) -> None:
    from decisec.dev.stack import running_stack

    async with running_stack(options, say, interrupts.hurry) as stack:
        endpoint = stack.endpoint
        up.set()
        if as_json:
            show_json(endpoint)
        else:
            simulated = " — simulated" if stack.host.simulated else ""
            sys.stdout.write(
                f"\nAPI         {endpoint.api_url}\n"
                f"docs        {endpoint.docs_url}\n"
                f"NATS        {endpoint.nats_url}\n"
                f"hypervisor  {stack.host.driver} {stack.host.driver_version}{simulated}\n"
                f"token       {endpoint.token}\n"
                f"            (customer {endpoint.customer}; for another one: "
                f"decisec token --customer NAME)\n"
                f"logs        {stack.state.logs}\n\n"
                f"{_how_to_talk(options.state_dir)}\n"
                "Ctrl-C stops everything.\n"
            )
            sys.stdout.flush()
        await stack.supervisor.guard(asyncio.Event().wait())


def _how_to_talk(state_dir: Path) -> str:
    """What makes commands go to this stack, unless they do already."""
    from decisec.cli import chosen

    line = f"decisec context add dev --state-dir {state_dir.absolute()} --use"
    try:
        other = chosen.context(DEFAULT_STATE)
    except CommandError as error:
        return f"Contexts cannot be used now: {error}."
    if other is not None and Path(other[1].state_dir or "/").absolute() != state_dir.absolute():
        return f"Commands go to the context {other[0]}. To have them come here: {line}"
    if other is None and state_dir != DEFAULT_STATE:
        return f"To have commands come here: {line}"
    return f"Commands come here when they are run in this directory. From elsewhere: {line}"


def demo(
    seconds: Annotated[float, typer.Option(min=2, max=3600, help="How long the VMs run.")] = 20.0,
    driver: Driver = DriverName.AUTO,
    state_dir: StateDirectory = DEFAULT_STATE / "demo",
    report: Annotated[
        Path, typer.Option(help="Where the figures go.", dir_okay=False)
    ] = DEFAULT_STATE / "demo-report.json",
    as_json: Json = False,
) -> int:
    """Run 5 VMs of two customers, meter them, and check the bill to the unit."""
    from decisec.demo.run import DemoOptions, run_demo

    options = DemoOptions(
        seconds=seconds, driver=driver.value, state_dir=state_dir, report=report, as_json=as_json
    )
    return asyncio.run(run_demo(options))


def _check_customer(customer: str) -> None:
    from schemas.errors import InvalidIdError
    from schemas.ids import token as checked

    try:
        checked(customer)
    except InvalidIdError as error:
        raise CommandError(f"--customer: {error}", Exit.USAGE, "usage") from error
