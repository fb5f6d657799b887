"""`decisec vm …`: the life of a VM."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from decisec.cli.connection import DEFAULT_STATE, ApiUrl, StateDirectory, Token, api_client
from decisec.cli.exits import EPILOG, CommandError, Exit
from decisec.cli.output import Json, show, show_json
from decisec.cli.vm_tables import details, table_of
from decisec.cli.wishes import (
    ApartBy,
    ApartRequired,
    Arch,
    Driver,
    HostLabel,
    InboundWish,
    Ipv4,
    Mtu,
    OpenPort,
    Prefix,
    networking,
    pairs,
    wishes,
)

if TYPE_CHECKING:
    from decisec.sdk import Client
    from schemas.api import VmAndOperation

app = typer.Typer(help="Make, look at, start, stop and delete VMs.", no_args_is_help=True,
                  epilog=EPILOG)  # fmt: skip

WAIT_S = 60.0

VmArgument = Annotated[str, typer.Argument(metavar="VM", help="Id or name of the VM.")]
NoWait = Annotated[
    bool,
    typer.Option("--no-wait", help="Return once the command is accepted.", show_default=False),
]
Grace = Annotated[
    float,
    typer.Option("--grace", min=0, max=300, help="Seconds the guest has before it is ended."),
]


def _numbers(option: str, values: list[str]) -> dict[str, int]:
    try:
        return {name: int(value) for name, value in pairs(option, values).items()}
    except ValueError:
        raise CommandError(
            f"{option}: give NAME=NUMBER, a whole number", Exit.USAGE, "usage"
        ) from None


def _metadata(values: list[str], file: Path | None) -> dict[str, str]:
    import msgspec

    given = pairs("--metadata", values)
    if file is None:
        return given
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, str]) | given
    except (OSError, ValueError) as error:
        words = error.strerror if isinstance(error, OSError) else "no JSON map of texts"
        raise CommandError(f"--metadata-file: {file}: {words}", Exit.USAGE, "usage") from None


@app.command(epilog=EPILOG)
def create(
    image: Annotated[str, typer.Option(help="Image, by its name in the host's store.")] = "tiny",
    name: Annotated[str, typer.Option(help="A name of your own.", show_default=False)] = "",
    vcpus: Annotated[int, typer.Option(min=1, help="Virtual CPUs.")] = 1,
    memory: Annotated[int, typer.Option(min=1, help="Memory in MiB.")] = 128,
    disk: Annotated[
        int, typer.Option(min=0, help="Disk in MiB; 0 for the image's rootfs as it is, if any.")
    ] = 0,
    network: Annotated[bool, typer.Option(help="With a network interface.")] = True,
    restart: Annotated[
        str, typer.Option(help="When it ends by itself: never, or on-failure.")
    ] = "never",
    arg: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Kernel argument that the image allows."),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Label of your own.")
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="What the guest can read at 169.254.169.254."),
    ] = None,
    metadata_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The same from a JSON map: no other user sees it."),
    ] = None,
    balloon: Annotated[
        int, typer.Option(min=0, help="MiB that the guest's balloon takes; 0 for none.")
    ] = 0,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=NUMBER",
            help="The most of disk_bytes_per_s, disk_ops_per_s, net_rx_bytes_per_s or"
            " net_tx_bytes_per_s.",
        ),
    ] = None,
    host_label: HostLabel = None,
    driver: Driver = "",
    arch: Arch = "",
    apart_by: ApartBy = "",
    apart_required: ApartRequired = False,
    ipv4: Ipv4 = False,
    inbound: InboundWish = "open",
    port: OpenPort = None,
    prefix: Prefix = 128,
    mtu: Mtu = 1500,
    boot: Annotated[bool, typer.Option("--boot", help="Boot it as well.")] = False,
    no_wait: NoWait = False,
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Make a VM."""
    import msgspec

    from schemas.api import CreateVmRequest

    wanted = {
        "image": image,
        "name": name,
        "vcpus": vcpus,
        "memory_mib": memory,
        "disk_mib": disk,
        "network": network,
        "restart": restart,
        "kernel_args": pairs("--arg", arg or []),
        "labels": pairs("--label", label or []),
        "metadata": _metadata(metadata or [], metadata_file),
        "balloon_mib": balloon,
        "limits": _numbers("--limit", limit or []),
        "placement": wishes(host_label, driver, arch, apart_by, required=apart_required),
        "networking": networking(ipv4, inbound, port, prefix, mtu),
        "boot": boot,
    }
    try:
        request = msgspec.convert(wanted, CreateVmRequest)
    except msgspec.ValidationError as error:
        raise CommandError(f"this VM cannot be asked for: {error}", Exit.USAGE, "usage") from error
    with api_client(api_url, token, state_dir) as client:
        report(client.create_vm(request, wait_s=wait_s(no_wait)), as_json)


@app.command("ls", epilog=EPILOG)
def list_vms(
    state: Annotated[str, typer.Option(help="Only VMs in this state.", show_default=False)] = "",
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=VALUE]", help="Only VMs with this label; may be given several times."
        ),
    ] = None,
    image: Annotated[str, typer.Option(help="Only VMs of this image.", show_default=False)] = "",
    name: Annotated[str, typer.Option(help="Only VMs of this name.", show_default=False)] = "",
    host: Annotated[
        str, typer.Option(help="Only VMs on this host; for operators.", show_default=False)
    ] = "",
    sort: Annotated[
        str, typer.Option(help="created_at or name; with - before it the other way round.")
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
        no_wait: NoWait = False,
        as_json: Json = False,
        api_url: ApiUrl = "",
        token: Token = "",
        state_dir: StateDirectory = DEFAULT_STATE,
    ) -> None:
        with api_client(api_url, token, state_dir) as client:
            report(act(client, find(client, vm), wait_s(no_wait)), as_json)

    app.command(name, help=doc, epilog=EPILOG)(command)


def _stop_verb(
    name: str, doc: str, act: Callable[[Client, UUID, float, float], VmAndOperation]
) -> None:
    def command(
        vm: VmArgument,
        grace: Grace = 10.0,
        no_wait: NoWait = False,
        as_json: Json = False,
        api_url: ApiUrl = "",
        token: Token = "",
        state_dir: StateDirectory = DEFAULT_STATE,
    ) -> None:
        with api_client(api_url, token, state_dir) as client:
            report(act(client, find(client, vm), grace, wait_s(no_wait)), as_json)

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


def wait_s(no_wait: bool) -> float:
    """How long a command waits for the end of what it asks for."""
    return 0.0 if no_wait else WAIT_S


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


def report(done: VmAndOperation, as_json: bool) -> None:
    """Say what a mutation has come to."""
    from schemas.hosts import OperationStatus

    if as_json:
        show_json(done)
        return
    vm, operation = done.vm, done.operation
    if operation.status is OperationStatus.SUCCEEDED:
        state = operation.state or vm.state
        show(f"{operation.verb} done: VM {vm.vm_id} {vm.name} is {state}".replace("  ", " "))
    else:
        show(
            f"{operation.verb} accepted: VM {vm.vm_id}, operation {operation.operation_id} is "
            f"{operation.status}"
        )
