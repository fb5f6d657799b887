"""`decisec image offered`: what a customer can make VMs from, wherever the images are."""

from __future__ import annotations

import typer

from decisec.cli.connection import DEFAULT_STATE, ApiUrl, StateDirectory, Token, api_client
from decisec.cli.exits import EPILOG
from decisec.cli.output import Json, show, show_json


def register(app: typer.Typer) -> None:
    """Add the command to `decisec image`."""
    app.command(epilog=EPILOG)(offered)


def offered(
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """List the images that your VMs can be made from, by asking the API."""
    with api_client(api_url, token, state_dir) as client:
        names = client.list_images()
    if as_json:
        show_json({"images": names})
        return
    for name in names:
        show(name)
