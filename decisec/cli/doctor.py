"""`decisec doctor …`: what this machine lacks to be a host."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import typer

from decisec.cli.exits import EPILOG, CommandError, Exit
from decisec.cli.output import Json, show, show_json

if TYPE_CHECKING:
    from vm_agent.network.examination import Lack

app = typer.Typer(help="Say what this machine lacks to be a host.", no_args_is_help=True,
                  epilog=EPILOG)  # fmt: skip


@app.callback()
def _group() -> None:
    """Keep the group's name also while it has one command."""


@app.command(epilog=EPILOG)
def network(as_json: Json = False) -> None:
    """Say what is missing to connect VMs, and how to get it.

    As root on the host, with the agent's variables. A fabric with a tap is made and taken away
    again, in network namespaces of its own; VMs that run notice nothing.
    """
    from runtime.errors import SettingsError
    from runtime.settings import load
    from vm_agent.network.examination import advice, lacks, try_out
    from vm_agent.settings import AgentSettings

    try:
        settings = load(AgentSettings, "agent", env={"DECISEC_AGENT_HOST_ID": "x", **os.environ})
    except SettingsError as error:
        raise CommandError(str(error), Exit.USAGE, "settings") from error

    async def examine() -> tuple[list[Lack], list[Lack]]:
        found = await asyncio.to_thread(lambda: list(lacks()))
        if not found and (lack := await try_out()) is not None:
            found.append(lack)
        return found, await advice(settings)

    missing, advised = asyncio.run(examine())
    if as_json:
        show_json({"works": not missing, "missing": missing, "advice": advised})
    else:
        for lack in missing:
            show(f"missing: {lack}")
        for lack in advised:
            show(f"advice: {lack}")
        if not missing:
            show("VMs can be connected here")
    if missing:
        raise typer.Exit(Exit.FAILED)
