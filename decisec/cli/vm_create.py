"""`decisec vm create`: options go before a file, a file before a template."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from decisec.cli import completions
from decisec.cli.connection import DEFAULT_STATE, ApiUrl, StateDirectory, Token, api_client
from decisec.cli.exits import EPILOG, CommandError, Exit
from decisec.cli.output import Json
from decisec.cli.templates import FIELDS, Template
from decisec.cli.waiting import TIMEOUT_S, Timeout, Wait, carry_out
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

VmFile = Annotated[
    str,
    typer.Option(
        "--file",
        "-f",
        metavar="vm.toml",
        help="What to make, as a file; - for stdin. `decisec vm config show` prints one.",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command to `decisec vm`."""
    app.command(epilog=EPILOG)(create)


def create(
    image: Annotated[
        str,
        typer.Option(
            help="Image, by its name; `decisec image offered` lists them.",
            show_default="tiny",
            autocompletion=completions.image_names,
        ),
    ] = "",
    template: Annotated[
        Template | None, typer.Option(help="Sizes to begin with.", show_default=False)
    ] = None,
    file: VmFile = "",
    name: Annotated[str, typer.Option(help="A name of your own.", show_default=False)] = "",
    vcpus: Annotated[
        int | None, typer.Option(min=1, help="Virtual CPUs.", show_default="1")
    ] = None,
    memory: Annotated[
        int | None, typer.Option(min=1, help="Memory in MiB.", show_default="128")
    ] = None,
    disk: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Disk in MiB; 0 for the image's rootfs as it is, if any.",
            show_default="0",
        ),
    ] = None,
    network: Annotated[
        bool | None,
        typer.Option(
            "--network/--no-network", help="With a network interface.", show_default="network"
        ),
    ] = None,
    restart: Annotated[
        str,
        typer.Option(
            help="When it ends by itself: never, or on-failure.",
            show_default="never",
            autocompletion=completions.words("never", "on-failure"),
        ),
    ] = "",
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
        int | None,
        typer.Option(
            min=0, help="MiB that the guest's balloon takes; 0 for none.", show_default="0"
        ),
    ] = None,
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
    ipv4: Ipv4 = None,
    inbound: InboundWish = "",
    port: OpenPort = None,
    prefix: Prefix = None,
    mtu: Mtu = None,
    boot: Annotated[
        bool | None, typer.Option("--boot/--no-boot", help="Boot it as well.", show_default=False)
    ] = None,
    wait: Wait = True,
    timeout: Timeout = TIMEOUT_S,
    as_json: Json = False,
    api_url: ApiUrl = "",
    token: Token = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Make a VM. Options go before the file, the file before the template."""
    import msgspec

    from decisec.cli import vm_file

    placement = wishes(host_label, driver, arch, apart_by, required=apart_required)
    options = {
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
        "placement": {
            key: value for key, value in placement.items() if value and (key != "apart" or apart_by)
        },
        "networking": networking(ipv4, inbound, port, prefix, mtu),
        "boot": boot,
    }
    given = {key: value for key, value in options.items() if value not in (None, "", {})}
    document = vm_file.read(file) if file else {}
    if wrongs := vm_file.wrong_in(document):
        raise vm_file.refused(file, wrongs)
    sizes = FIELDS[template] if template else vm_file.template_of(document)
    try:
        request = vm_file.request_of(sizes, document, given)
    except msgspec.ValidationError as error:
        raise CommandError(f"this VM cannot be asked for: {error}", Exit.USAGE, "usage") from error
    if port and request.networking.inbound != "closed":
        raise CommandError("--port: only with --inbound closed", Exit.USAGE, "usage")
    with api_client(api_url, token, state_dir) as client:
        carry_out(
            client,
            f"create {request.name or 'a VM'}",
            lambda wait_s: client.create_vm(request, wait_s=wait_s),
            wait=wait,
            timeout_s=timeout,
            as_json=as_json,
        )


def _numbers(option: str, values: list[str]) -> dict[str, int]:
    try:
        return {name: int(value) for name, value in pairs(option, values).items()}
    except ValueError:
        raise CommandError(
            f"{option}: give NAME=NUMBER, a whole number", Exit.USAGE, "usage"
        ) from None


def _metadata(values: list[str], file: Path | None) -> dict[str, Any]:
    import msgspec

    given = pairs("--metadata", values)
    if file is None:
        return given
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, str]) | given
    except (OSError, ValueError) as error:
        words = error.strerror if isinstance(error, OSError) else "no JSON map of texts"
        raise CommandError(f"--metadata-file: {file}: {words}", Exit.USAGE, "usage") from None
