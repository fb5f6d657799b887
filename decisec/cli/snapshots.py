"""`decisec snapshot …`: what is kept of VMs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from decisec.cli import completions
from decisec.cli.connection import DEFAULT_STATE, ApiUrl, StateDirectory, Token, api_client
from decisec.cli.exits import EPILOG, CommandError, Exit
from decisec.cli.output import Json, show, show_json
from decisec.cli.vm import find
from decisec.cli.waiting import TIMEOUT_S, Timeout, Wait, carry_out

if TYPE_CHECKING:
    from schemas.api import SnapshotView

app = typer.Typer(
    help="List snapshots and throw them away. `decisec vm snapshot` takes one, `vm restore` "
    "starts a VM from one.",
    no_args_is_help=True,
    epilog=EPILOG,
)


def snapshot_id_of(text: str) -> UUID:
    """The id in an argument.

    Raises:
        CommandError: It is none.
    """
    try:
        return UUID(text)
    except ValueError:
        raise CommandError(
            f"{text!r} is no id of a snapshot; see `decisec snapshot ls`", Exit.USAGE, "usage"
        ) from None


@app.command("ls", epilog=EPILOG)
def list_snapshots(
    vm: Annotated[
        str,
        typer.Option(
            help="Only those of this VM, by id or name.",
            show_default=False,
            autocompletion=completions.vm_names,
        ),
    ] = "",
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """List your snapshots, oldest first."""
    with api_client(api_url, token, state_dir) as client:
        found = list(client.list_snapshots(vm_id=find(client, vm) if vm else None))
    if as_json:
        show_json({"snapshots": found})
    else:
        show(_table(found))


@app.command("rm", epilog=EPILOG)
def remove(
    snapshot: Annotated[
        str,
        typer.Argument(
            metavar="SNAPSHOT", help="Id of the snapshot.", autocompletion=completions.snapshot_ids
        ),
    ],
    wait: Wait = True,
    timeout: Timeout = TIMEOUT_S,
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Throw a snapshot away; VMs that were started from it go on."""
    snapshot_id = snapshot_id_of(snapshot)
    with api_client(api_url, token, state_dir) as client:
        carry_out(
            client,
            f"discard {snapshot}",
            lambda wait_s: client.delete_snapshot(snapshot_id, wait_s=wait_s),
            wait=wait,
            timeout_s=timeout,
            as_json=as_json,
        )


def _table(snapshots: list[SnapshotView]) -> Any:
    from rich.table import Table

    table = Table()
    for heading in ("id", "VM", "kind", "image", "taken"):
        table.add_column(heading, no_wrap=True)
    for heading in ("vCPUs", "memory", "disk"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in snapshots:
        table.add_row(
            str(one.snapshot_id),
            str(one.vm_id),
            one.kind,
            one.image,
            one.created_at.isoformat(timespec="seconds"),
            str(one.vcpus),
            f"{one.memory_mib} MiB",
            f"{one.disk_mib} MiB" if one.disk_mib else "-",
        )
    return table
