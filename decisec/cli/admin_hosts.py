"""`decisec admin host …`: hosts, by the API."""

from __future__ import annotations

from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from decisec.cli.acts import ask_reason
from decisec.cli.connection import DEFAULT_STATE, ApiUrl, StateDirectory, Token, api_client
from decisec.cli.exits import EPILOG
from decisec.cli.output import Json, show, show_json

if TYPE_CHECKING:
    from schemas.admin_hosts import HostView

app = typer.Typer(
    help="Hosts by the API. `decisec host` does the same on the bus, also while no gateway runs, "
    "and waits until a host is empty.",
    no_args_is_help=True,
    epilog=EPILOG,
)

_SHOWN_VMS = 1000

Host = Annotated[str, typer.Argument(metavar="HOST", help="Name of the host.")]
Why = Annotated[str, typer.Option(help="Why, for those who look at the host.", show_default=False)]
Force = Annotated[
    bool,
    typer.Option("--force", help="Also for a host that is not heard of.", show_default=False),
]


class State(StrEnum):
    """What can be expected of a host."""

    UP = "up"
    DRAINING = "draining"
    EMPTY = "empty"
    SILENT = "silent"
    NOT_HEARD = "not_heard"


@app.command("ls", epilog=EPILOG)
def list_hosts(
    state: Annotated[State | None, typer.Option(help="Only hosts so.", show_default=False)] = None,
    pool: Annotated[str, typer.Option(help="Only of this pool.", show_default=False)] = "",
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """List hosts: heard of, ordered to drain, declared lost, or named by a VM."""
    from decisec.cli.admin_tables import hosts_table
    from schemas.admin_hosts import HostState

    wanted = HostState(state.value) if state is not None else None
    with api_client(api_url, token, state_dir) as client:
        found = list(client.admin.list_hosts(state=wanted, pool=pool))
    if as_json:
        show_json({"hosts": found})
    else:
        show(hosts_table(found))


@app.command("show", epilog=EPILOG)
def show_host(
    host: Host,
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Show a host, and the VMs of all customers there, a thousand at most."""
    import msgspec

    from decisec.cli.admin_names import check_name
    from decisec.cli.admin_tables import host_table, host_vms_table

    check_name("HOST", host)
    with api_client(api_url, token, state_dir) as client:
        found = client.admin.get_host(host)
        vms = list(islice(client.admin.list_host_vms(host, page_size=_SHOWN_VMS), _SHOWN_VMS))
    if as_json:
        # The heartbeat has the number as its agent says it.
        show_json(msgspec.structs.asdict(found) | {"listed_vms": vms})
        return
    show(host_table(found))
    if vms:
        show(host_vms_table(vms))


@app.command(epilog=EPILOG)
def drain(
    host: Host,
    reason: Why = "",
    force: Force = False,
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Let a host take no new VM, until `undrain`. Those that are there run on."""
    from decisec.cli.admin_names import check_name

    check_name("HOST", host)
    with api_client(api_url, token, state_dir) as client:
        _report(client.admin.drain_host(host, reason=reason, force=force), as_json)


@app.command(epilog=EPILOG)
def undrain(
    host: Host,
    reason: Why = "",
    force: Force = False,
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Let a host take VMs again, whatever its agent's settings say."""
    from decisec.cli.admin_names import check_name

    check_name("HOST", host)
    with api_client(api_url, token, state_dir) as client:
        _report(client.admin.undrain_host(host, reason=reason, force=force), as_json)


@app.command(epilog=EPILOG)
def lost(
    host: Host,
    reason: Annotated[
        str,
        typer.Option(
            help="Why, for the audit and those who look at the bills.", show_default=False
        ),
    ] = "",
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Even if its agent is heard, or frames of it are not stored yet.",
            show_default=False,
        ),
    ] = False,
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Declare a host lost: usage answers do not wait for its frames any more, and name it."""
    from decisec.cli.admin_names import check_name

    check_name("HOST", host)
    why = ask_reason(reason)
    with api_client(api_url, token, state_dir) as client:
        _report(client.admin.declare_host_lost(host, reason=why, force=force), as_json)


@app.command(epilog=EPILOG)
def found(
    host: Host,
    reason: Annotated[str, typer.Option(help="Why, for the audit.")] = "found again",
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Take back that a host is lost: usage answers wait for its frames again."""
    from decisec.cli.admin_names import check_name

    check_name("HOST", host)
    why = ask_reason(reason)
    with api_client(api_url, token, state_dir) as client:
        _report(client.admin.declare_host_found(host, reason=why), as_json)


def _report(host: HostView, as_json: bool) -> None:
    if as_json:
        show_json(host)
        return
    from decisec.cli.admin_tables import host_table

    show(host_table(host))
