"""What a VM asks of its host and of the network, as options."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from decisec.cli.exits import CommandError, Exit

HostLabel = Annotated[
    list[str] | None,
    typer.Option(
        "--host-label", metavar="NAME=VALUE", help="A label that the host must have; repeatable."
    ),
]
Driver = Annotated[
    str,
    typer.Option(
        "--driver",
        help="Only on hosts with this hypervisor: firecracker, cloud-hypervisor, qemu, simulator.",
        show_default=False,
    ),
]
Arch = Annotated[
    str,
    typer.Option("--arch", help="Only on hosts of this: x86_64, aarch64.", show_default=False),
]
ApartBy = Annotated[
    str,
    typer.Option(
        "--apart-by",
        metavar="LABEL",
        help="On another host than your VMs with the same value of this label, where possible.",
        show_default=False,
    ),
]
ApartRequired = Annotated[
    bool,
    typer.Option(
        "--apart-required", help="With --apart-by: or do not make it.", show_default=False
    ),
]

Ipv4 = Annotated[
    bool | None,
    typer.Option("--ipv4/--no-ipv4", help="With an IPv4 address as well.", show_default=False),
]
InboundWish = Annotated[
    str,
    typer.Option(
        "--inbound", help="Who may begin to talk to it: open, or closed.", show_default="open"
    ),
]
OpenPort = Annotated[
    list[str] | None,
    typer.Option(
        "--port",
        metavar="PROTOCOL/PORT[-PORT]",
        help="With --inbound closed: open to anybody, such as tcp/443; repeatable.",
    ),
]
Prefix = Annotated[
    int | None,
    typer.Option(
        "--prefix",
        help="128 for one IPv6 address, 64 for a network of its own.",
        show_default="128",
    ),
]
Mtu = Annotated[
    int | None,
    typer.Option("--mtu", help="The largest packet in bytes, 1280 to 9000.", show_default="1500"),
]


def pairs(option: str, values: list[str]) -> dict[str, str]:
    """NAME=VALUE, several times.

    Raises:
        CommandError: One of them is not, or a name comes twice.
    """
    found = dict(value.partition("=")[::2] for value in values)
    if len(found) != len(values) or not all("=" in value for value in values):
        raise CommandError(f"{option}: give NAME=VALUE, each name once", Exit.USAGE, "usage")
    return found


def wishes(
    host_label: list[str] | None, driver: str, arch: str, apart_by: str, *, required: bool
) -> dict[str, Any]:
    """The options as a request has them.

    Raises:
        CommandError: They do not go together.
    """
    if required and not apart_by:
        raise CommandError("--apart-required: only with --apart-by", Exit.USAGE, "usage")
    return {
        "host_labels": pairs("--host-label", host_label or []),
        "driver": driver,
        "arch": arch,
        "apart_by": apart_by,
        "apart": "required" if required else "preferred",
    }


def networking(
    ipv4: bool | None, inbound: str, port: list[str] | None, prefix: int | None, mtu: int | None
) -> dict[str, Any]:
    """Those options of the network that are given, as a request has them."""
    options = {
        "ipv4": ipv4,
        "inbound": inbound or None,
        "ports": port or None,
        "prefix": prefix,
        "mtu": mtu,
    }
    return {name: value for name, value in options.items() if value is not None}
