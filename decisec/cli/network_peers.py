"""`decisec network peer …`: customers whose VMs one's own reach."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from decisec.cli import completions
from decisec.cli.connection import DEFAULT_STATE, ApiUrl, StateDirectory, Token, api_client
from decisec.cli.exits import EPILOG, CommandError, Exit
from decisec.cli.output import Json, show, show_json

if TYPE_CHECKING:
    from schemas.network_peers import PeerView

app = typer.Typer(
    help="Let your VMs and those of another customer reach each other where they share a host: "
    "once both of you have agreed, and as long as both do.",
    no_args_is_help=True,
    epilog=EPILOG,
)

Customer = Annotated[
    str,
    typer.Argument(
        metavar="CUSTOMER", help="Id of the other customer.", autocompletion=completions.peers
    ),
]


class State(StrEnum):
    """How far two customers agree."""

    AGREED = "agreed"
    WAITING = "waiting"
    ASKED = "asked"


def register(group: typer.Typer) -> None:
    """Add the commands to a group."""
    group.add_typer(app, name="peer")


@app.command(epilog=EPILOG)
def add(
    customer: Customer,
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Agree. It stands until you take it back with `rm`. Safe to repeat.

    `waiting` says that the other one has not agreed; nothing says whether there is such a customer.
    """
    peer_id = _customer_of(customer)
    with api_client(api_url, token, state_dir) as client:
        found = client.add_peer(peer_id)
    _tell(found, as_json=as_json)


@app.command("rm", epilog=EPILOG)
def remove(
    customer: Customer,
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Agree no more: VMs are cut off from each other within a second. Safe to repeat."""
    peer_id = _customer_of(customer)
    with api_client(api_url, token, state_dir) as client:
        found = client.remove_peer(peer_id)
    _tell(found, as_json=as_json)


@app.command("ls", epilog=EPILOG)
def list_peers(
    state: Annotated[
        State | None, typer.Option(help="Only customers so.", show_default=False)
    ] = None,
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """List whom you agree with and who agrees with you.

    `agreed`: both; `waiting`: only you; `asked`: only they.
    """
    from rich.table import Table

    from schemas.network_peers import PeerState

    wanted = PeerState(state.value) if state is not None else None
    with api_client(api_url, token, state_dir) as client:
        found = list(client.list_peers(state=wanted))
    if as_json:
        show_json({"peers": found})
        return
    table = Table()
    for heading in ("customer", "state", "since"):
        table.add_column(heading, no_wrap=True)
    for one in found:
        since = one.since.isoformat(timespec="seconds") if one.since is not None else "-"
        table.add_row(one.customer_id, one.state.value, since)
    show(table)


_SENTENCES = {
    "agreed": "your VMs and those of {0} reach each other",
    "waiting": "you have agreed; {0} has not, so nothing has changed",
    "asked": "{0} still agrees; you do not, so VMs do not reach each other",
    "none": "neither you nor {0} agrees",
}


def _tell(peer: PeerView, *, as_json: bool) -> None:
    if as_json:
        show_json(peer)
    else:
        show(_SENTENCES[peer.state.value].format(peer.customer_id))


def _customer_of(text: str) -> str:
    from schemas.errors import InvalidIdError
    from schemas.ids import token

    try:
        return token(text)
    except InvalidIdError as error:
        raise CommandError(str(error), Exit.USAGE, "usage") from None
