"""`decisec operation …`: how far what was asked for has come."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from decisec.cli import completions
from decisec.cli.connection import DEFAULT_STATE, ApiUrl, StateDirectory, Token, api_client
from decisec.cli.exits import EPILOG, CommandError, Exit
from decisec.cli.output import Json, show, show_json
from decisec.cli.vm import find
from decisec.cli.waiting import TIMEOUT_S, await_operation, progress

if TYPE_CHECKING:
    from schemas.api import OperationView

app = typer.Typer(
    help="Look at what was asked for of late, and wait for it.", no_args_is_help=True, epilog=EPILOG
)

_STATUSES = ("pending", "running", "succeeded", "failed")

OperationArgument = Annotated[
    str,
    typer.Argument(
        metavar="OPERATION", help="Id of the operation.", autocompletion=completions.operation_ids
    ),
]


@app.command("ls", epilog=EPILOG)
def list_operations(
    vm: Annotated[
        str,
        typer.Option(
            help="Only those of this VM, by id or name.",
            show_default=False,
            autocompletion=completions.vm_names,
        ),
    ] = "",
    status: Annotated[
        str,
        typer.Option(
            help=f"Only those that are {', '.join(_STATUSES)}.",
            show_default=False,
            autocompletion=completions.words(*_STATUSES),
        ),
    ] = "",
    number: Annotated[
        int, typer.Option("--number", "-n", min=1, max=1000, help="The last so many.")
    ] = 20,
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """List operations, the newest first."""
    from schemas.hosts import OperationStatus

    if status and status not in _STATUSES:
        raise CommandError(
            f"--status: {status!r} is none of {', '.join(_STATUSES)}", Exit.USAGE, "usage"
        )
    with api_client(api_url, token, state_dir) as client:
        found = list(
            islice(
                client.list_operations(
                    vm_id=find(client, vm) if vm else None,
                    status=OperationStatus(status) if status else None,
                    page_size=min(number, 100),
                ),
                number,
            )
        )
    if as_json:
        show_json({"operations": found})
    else:
        show(_table(found))


@app.command(epilog=EPILOG)
def get(
    operation: OperationArgument,
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Look at one operation; exit code 0 whatever it has come to."""
    operation_id = _id(operation)
    with api_client(api_url, token, state_dir) as client:
        found = client.get_operation(operation_id)
    _show(found, as_json)


@app.command(epilog=EPILOG)
def wait(
    operation: OperationArgument,
    timeout: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="So long at most.")
    ] = TIMEOUT_S,
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Wait for the end of an operation; the exit code tells of it."""
    operation_id = _id(operation)
    with api_client(api_url, token, state_dir) as client:
        found = client.get_operation(operation_id)
        with progress(f"{found.verb} {found.vm_id}", quiet=as_json):
            found = await_operation(client, found, timeout)
    _show(found, as_json)


def _id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise CommandError(
            f"{text[:80]!r} is no id of an operation; see `decisec operation ls`",
            Exit.USAGE,
            "usage",
        ) from None


def _show(found: OperationView, as_json: bool) -> None:
    if as_json:
        show_json(found)
    else:
        show(_table([found]))


def _table(operations: list[OperationView]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for heading in ("id", "VM", "verb", "status", "begun", "why"):
        table.add_column(heading, no_wrap=True)
    for one in operations:
        why = f"{one.error.code}: {one.error.message}" if one.error else ""
        table.add_row(
            str(one.operation_id),
            str(one.vm_id),
            one.verb,
            one.status,
            one.created_at.isoformat(timespec="seconds"),
            Text(why),
        )
    return table
