"""`decisec run <service>`: one service in this process, as an init system would call it."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from typing import Annotated

import typer

from decisec.cli.exits import EPILOG


class ServiceName(StrEnum):
    """What can be run."""

    GATEWAY = "gateway"
    AGENT = "agent"
    COLLECTOR = "collector"
    BATCHER = "batcher"


_PACKAGES = {ServiceName.AGENT: "vm_agent"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EPILOG)(run)


def run(service: Annotated[ServiceName, typer.Argument(help="Which one.")]) -> None:
    """Run one service here; settings come from DECISEC_* variables and DECISEC_CONFIG."""
    package = _PACKAGES.get(service, service.value)
    # Replaces this process, so that signals and exit code are the service's own.
    os.execv(sys.executable, [sys.executable, "-m", package])  # noqa: S606 - no shell is wanted
