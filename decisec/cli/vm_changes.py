"""`decisec vm label`, `rename`, `snapshot` and `restore`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from decisec.cli import completions
from decisec.cli.connection import DEFAULT_STATE, ApiUrl, StateDirectory, Token, api_client
from decisec.cli.exits import EPILOG, CommandError, Exit
from decisec.cli.output import Json, show, show_json
from decisec.cli.vm import VmArgument, find
from decisec.cli.waiting import TIMEOUT_S, Timeout, Wait, carry_out

if TYPE_CHECKING:
    from schemas.api import VmView

SnapshotArgument = Annotated[
    str,
    typer.Argument(
        metavar="SNAPSHOT", help="Id of the snapshot.", autocompletion=completions.snapshot_ids
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to `decisec vm`."""
    app.command(epilog=EPILOG)(label)
    app.command(epilog=EPILOG)(rename)
    app.command(epilog=EPILOG)(snapshot)
    app.command(epilog=EPILOG)(restore)


def label(
    vm: VmArgument,
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=VALUE | NAME-]...", help="Labels to set, and those to remove."
        ),
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Remove all labels first.")] = False,
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Set or remove labels of a VM; without changes, show those that it has."""
    wanted = _labels(changes or [])
    with api_client(api_url, token, state_dir) as client:
        vm_id = find(client, vm)
        if clear:
            view = client.get_vm(vm_id)
            gone: dict[str, str | None] = dict.fromkeys(view.spec.labels)
            wanted = gone | wanted
        view = client.patch_vm(vm_id, labels=wanted) if wanted else client.get_vm(vm_id)
    _show(view, as_json)


def rename(
    vm: VmArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help='The new name; "" for none.')],
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Give a VM another name."""
    with api_client(api_url, token, state_dir) as client:
        view = client.patch_vm(find(client, vm), name=name or None)
    if as_json:
        show_json(view)
    else:
        show(f"VM {view.vm_id} is {view.name or 'without a name'}")


def snapshot(
    vm: VmArgument,
    kind: Annotated[
        str,
        typer.Option(
            help="full, or diff: what has changed since the last one.",
            autocompletion=completions.words("full", "diff"),
        ),
    ] = "full",
    wait: Wait = True,
    timeout: Timeout = TIMEOUT_S,
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Keep memory and disk of a VM that runs or is paused."""
    from schemas.vms import SnapshotKind

    if kind not in set(SnapshotKind):
        raise CommandError(f"--kind: {kind!r} is neither full nor diff", Exit.USAGE, "usage")
    with api_client(api_url, token, state_dir) as client:
        vm_id = find(client, vm)
        done = carry_out(
            client,
            f"snapshot {vm}",
            lambda wait_s: client.snapshot_vm(vm_id, kind=SnapshotKind(kind), wait_s=wait_s),
            wait=wait,
            timeout_s=timeout,
            as_json=as_json,
        )
    if not as_json:
        show(f"snapshot {done.operation.snapshot_id}")


def restore(
    vm: VmArgument,
    snapshot: SnapshotArgument,
    wait: Wait = True,
    timeout: Timeout = TIMEOUT_S,
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Start a VM that is stopped, or was never started, from a snapshot."""
    from decisec.cli.snapshots import snapshot_id_of

    snapshot_id = snapshot_id_of(snapshot)
    with api_client(api_url, token, state_dir) as client:
        vm_id = find(client, vm)
        carry_out(
            client,
            f"restore {vm}",
            lambda wait_s: client.restore_vm(vm_id, snapshot_id, wait_s=wait_s),
            wait=wait,
            timeout_s=timeout,
            as_json=as_json,
        )


def _labels(changes: list[str]) -> dict[str, str | None]:
    wanted: dict[str, str | None] = {}
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals and name.endswith("-"):
            name = name[:-1]
        elif not equals:
            raise CommandError(
                f"{change!r}: give NAME=VALUE to set a label, NAME- to remove it",
                Exit.USAGE,
                "usage",
            )
        if name in wanted:
            raise CommandError(f"{name!r} is given twice", Exit.USAGE, "usage")
        wanted[name] = value if equals else None
    return wanted


def _show(view: VmView, as_json: bool) -> None:
    if as_json:
        show_json({"vm_id": view.vm_id, "labels": view.spec.labels})
        return
    labels = view.spec.labels
    for name in sorted(labels):
        show(f"{name}={labels[name]}")
    if not labels:
        show(f"VM {view.vm_id} has no labels")
