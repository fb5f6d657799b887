"""`decisec vm …`: the life of a VM."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from decisec.cli import completions
from decisec.cli.connection import DEFAULT_STATE, ApiUrl, StateDirectory, Token, api_client
from decisec.cli.exits import EPILOG, CommandError, Exit
from decisec.cli.output import Json, show, show_json
from decisec.cli.quarantine import quarantine, release
from decisec.cli.vm_tables import details, table_of
from decisec.cli.waiting import TIMEOUT_S, Timeout, Wait, carry_out

if TYPE_CHECKING:
    from decisec.sdk import Client
    from schemas.api import VmAndOperation

app = typer.Typer(help="Make, look at, start, stop and delete VMs.", no_args_is_help=True,
                  epilog=EPILOG)  # fmt: skip

VmArgument = Annotated[
    str,
    typer.Argument(metavar="VM", help="Id or name of the VM.", autocompletion=completions.vm_names),
]
Grace = Annotated[
    float,
    typer.Option("--grace", min=0, max=300, help="Seconds the guest has before it is ended."),
]


@app.command("ls", epilog=EPILOG)
def list_vms(
    state: Annotated[
        str,
        typer.Option(
            help="Only VMs in this state.", show_default=False, autocompletion=completions.states
        ),
    ] = "",
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=VALUE]", help="Only VMs with this label; may be given several times."
        ),
    ] = None,
    image: Annotated[
        str,
        typer.Option(
            help="Only VMs of this image.",
            show_default=False,
            autocompletion=completions.image_names,
        ),
    ] = "",
    name: Annotated[str, typer.Option(help="Only VMs of this name.", show_default=False)] = "",
    host: Annotated[
        str, typer.Option(help="Only VMs on this host; for operators.", show_default=False)
    ] = "",
    sort: Annotated[
        str,
        typer.Option(
            help="created_at or name; with - before it the other way round.",
            autocompletion=completions.words("created_at", "-created_at", "name", "-name"),
        ),
    ] = "created_at",
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """List your VMs."""
    from schemas.vms import VmState

    if state and state not in set(VmState):
        known = ", ".join(VmState)
        raise CommandError(f"--state: {state!r} is none of {known}", Exit.USAGE, "usage")
    labels = {
        key: value if equals else None
        for key, equals, value in (text.partition("=") for text in label or [])
    }
    with api_client(api_url, token, state_dir) as client:
        found = list(
            client.list_vms(
                state=VmState(state) if state else None,
                labels=labels,
                image=image,
                name=name,
                host=host,
                sort=sort,
            )
        )
    if as_json:
        show_json({"vms": found})
    else:
        show(table_of(found))


@app.command(epilog=EPILOG)
def get(
    vm: VmArgument,
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Look at one VM."""
    with api_client(api_url, token, state_dir) as client:
        view = client.get_vm(find(client, vm))
    if as_json:
        show_json(view)
    else:
        show(details(view))


def _verb(name: str, doc: str, act: Callable[[Client, UUID, float], VmAndOperation]) -> None:
    def command(
        vm: VmArgument,
        wait: Wait = True,
        timeout: Timeout = TIMEOUT_S,
        as_json: Json = False,
        api_url: ApiUrl = "",
        token: Token = "",
        state_dir: StateDirectory = DEFAULT_STATE,
    ) -> None:
        with api_client(api_url, token, state_dir) as client:
            vm_id = find(client, vm)
            carry_out(
                client,
                f"{name} {vm}",
                lambda wait_s: act(client, vm_id, wait_s),
                wait=wait,
                timeout_s=timeout,
                as_json=as_json,
            )

    app.command(name, help=doc, epilog=EPILOG)(command)


def _stop_verb(
    name: str, doc: str, act: Callable[[Client, UUID, float, float], VmAndOperation]
) -> None:
    def command(
        vm: VmArgument,
        grace: Grace = 10.0,
        wait: Wait = True,
        timeout: Timeout = TIMEOUT_S,
        as_json: Json = False,
        api_url: ApiUrl = "",
        token: Token = "",
        state_dir: StateDirectory = DEFAULT_STATE,
    ) -> None:
        with api_client(api_url, token, state_dir) as client:
            vm_id = find(client, vm)
            carry_out(
                client,
                f"{name} {vm}",
                lambda wait_s: act(client, vm_id, grace, wait_s),
                wait=wait,
                timeout_s=timeout,
                as_json=as_json,
            )

    app.command(name, help=doc, epilog=EPILOG)(command)


_verb("boot", "Start a VM.", lambda c, vm, wait_s: c.boot_vm(vm, wait_s=wait_s))
_stop_verb(
    "shutdown",
    "Ask the guest to stop; end it after the grace period.",
    lambda c, vm, grace_s, wait_s: c.shutdown_vm(vm, grace_s=grace_s, wait_s=wait_s),
)
_verb("pause", "Stop the vCPUs; memory stays allocated and billed.",
      lambda c, vm, wait_s: c.pause_vm(vm, wait_s=wait_s))  # fmt: skip
_verb("resume", "Let the vCPUs go on.", lambda c, vm, wait_s: c.resume_vm(vm, wait_s=wait_s))
_stop_verb(
    "reboot",
    "Shut down and boot again.",
    lambda c, vm, grace_s, wait_s: c.reboot_vm(vm, grace_s=grace_s, wait_s=wait_s),
)
_verb("delete", "End a VM if it runs, and free all it holds.",
      lambda c, vm, wait_s: c.delete_vm(vm, wait_s=wait_s))  # fmt: skip


def find(client: Client, vm: str) -> UUID:
    """The VM that an argument means: an id, or a name that exactly one VM has."""
    try:
        return UUID(vm)
    except ValueError:
        pass
    found = [view.vm_id for view in client.list_vms(name=vm)]
    match found:
        case [vm_id]:
            return vm_id
        case []:
            raise CommandError(
                f"no VM has the name or id {vm!r}; see `decisec vm ls`", Exit.NOT_FOUND, "not_found"
            )
        case _:
            raise CommandError(
                f"{len(found)} VMs have the name {vm!r}; give the id", Exit.USAGE, "ambiguous"
            )


app.command("quarantine", epilog=EPILOG)(quarantine)
app.command("release", epilog=EPILOG)(release)
