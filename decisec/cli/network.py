"""`decisec network …`: the network of VMs."""

from __future__ import annotations

import typer

from decisec.cli.exits import EPILOG

app = typer.Typer(help="The network of your VMs.", no_args_is_help=True, epilog=EPILOG)


@app.callback()
def _group() -> None:
    """Keep the group's name also while it has one command."""
