"""`decisec whoami` and `decisec quota`: who one is to the API, and what one may have."""

from __future__ import annotations

import typer

from decisec.cli.connection import DEFAULT_STATE, ApiUrl, StateDirectory, Token, api_client
from decisec.cli.exits import EPILOG
from decisec.cli.output import Json, show, show_json


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog=EPILOG)(whoami)
    app.command(epilog=EPILOG)(quota)


def whoami(
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Show what the API reads from the token."""
    from rich.table import Table
    from rich.text import Text

    with api_client(api_url, token, state_dir) as client:
        found = client.whoami()
    if as_json:
        show_json(found)
        return
    table = Table(show_header=False, box=None)
    for name, value in (
        ("subject", found.subject),
        ("customer", found.customer_id),
        ("scopes", " ".join(found.scopes) or "-"),
    ):
        table.add_row(name, Text(value))
    show(table)


def quota(
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Show what all your VMs may take together, and what they take."""
    import msgspec
    from rich.table import Table

    with api_client(api_url, token, state_dir) as client:
        found = client.quotas()
    if as_json:
        show_json(found)
        return
    table = Table()
    table.add_column("", no_wrap=True)
    for heading in ("used", "limit", "left"):
        table.add_column(heading, justify="right", no_wrap=True)
    used = msgspec.structs.asdict(found.used)
    for name, limit in msgspec.structs.asdict(found.limits).items():
        table.add_row(name, str(used[name]), str(limit), str(limit - used[name]))
    show(table)
