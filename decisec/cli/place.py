"""`decisec place …`: where a VM would go, and why nowhere else; for operators."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from decisec.cli.connection import DEFAULT_STATE, NatsUrl, StateDirectory, bus
from decisec.cli.exits import EPILOG, CommandError, Exit
from decisec.cli.output import Json, show, show_json
from decisec.cli.wishes import ApartBy, ApartRequired, Arch, Driver, HostLabel, pairs, wishes

if TYPE_CHECKING:
    from rich.table import Table

    from runtime.bus import Bus
    from schemas.places import PlaceExplanation, PlaceQuestion, PlaceReply

app = typer.Typer(help="See where VMs are placed.", no_args_is_help=True, epilog=EPILOG)

_ANSWER_S = 5.0


@app.callback()
def _place() -> None:
    """See where VMs are placed."""


@app.command(epilog=EPILOG)
def explain(
    image: Annotated[str, typer.Option(help="Image of the VM.")] = "tiny",
    vcpus: Annotated[int, typer.Option(min=1, help="Virtual CPUs.")] = 1,
    memory: Annotated[int, typer.Option(min=16, help="Memory in MiB.")] = 128,
    disk: Annotated[int, typer.Option(min=0, help="Disk in MiB.")] = 0,
    label: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A label of the VM; repeatable.")
    ] = None,
    host_label: HostLabel = None,
    driver: Driver = "",
    arch: Arch = "",
    apart_by: ApartBy = "",
    apart_required: ApartRequired = False,
    customer: Annotated[
        str, typer.Option(help="Whose VM: their pool, their VMs to be apart from.",
                          show_default=False)
    ] = "",
    pool: Annotated[str, typer.Option(help="Another pool.", show_default=False)] = "",
    as_json: Json = False,
    nats_url: NatsUrl = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:  # fmt: skip
    """Say which host a VM would get now, which hosts cannot take it, and why.

    A gateway answers out of what it knows at this moment. Nothing is placed or held.
    """
    import msgspec

    from schemas.places import PlaceQuestion

    wanted = {
        "spec": {
            "image": image,
            "vcpus": vcpus,
            "memory_mib": memory,
            "disk_mib": disk,
            "labels": pairs("--label", label or []),
            "placement": wishes(host_label, driver, arch, apart_by, required=apart_required),
        },
        "customer_id": customer or None,
        "pool": pool or None,
    }
    try:
        question = msgspec.convert(wanted, PlaceQuestion)
    except msgspec.ValidationError as error:
        raise CommandError(f"this VM cannot be asked for: {error}", Exit.USAGE, "usage") from error

    async def ask() -> PlaceReply:
        async with bus(nats_url, state_dir) as connection:
            return await _ask(connection, question)

    reply = asyncio.run(ask())
    if reply.explanation is None:
        message = reply.error.message if reply.error else "the gateway says nothing"
        raise CommandError(message, Exit.FAILED, reply.error.code if reply.error else "internal")
    if as_json:
        show_json(reply.explanation)
        return
    show(_table(reply.explanation))
    show(_sentence(reply.explanation))


async def _ask(connection: Bus, question: PlaceQuestion) -> PlaceReply:
    from schemas.codec import encode
    from schemas.places import decode_place_reply
    from schemas.subjects import PLACE_EXPLAIN

    answer = await connection.request(PLACE_EXPLAIN, encode(question), timeout_s=_ANSWER_S)
    reply: PlaceReply = decode_place_reply(answer.data)
    return reply


def _table(found: PlaceExplanation) -> Table:
    from rich.table import Table

    table = Table()
    for heading in ("host", "", "vCPUs", "memory", "disk", "slots", "in flight", "VMs", "apart"):
        right = heading not in ("host", "")
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    for host in found.hosts:
        free = host.free
        table.add_row(
            host.host_id,
            host.reason or ("taken" if host.host_id == found.host_id else "fits"),
            *(str(n) for n in (free.vcpus, free.memory_mib, free.disk_mib, free.slots)),
            str(host.in_flight.slots),
            str(host.vms),
            str(host.peers),
        )
    return table


def _sentence(found: PlaceExplanation) -> str:
    where = f"pool {found.pool} in {found.region}, {found.strategy}"
    more = f"; {found.left_out} more hosts" if found.left_out else ""
    other = f"; {found.elsewhere} hosts are of other pools or regions" if found.elsewhere else ""
    if found.host_id is not None:
        return f"{found.host_id} ({found.why}); {where}{more}{other}"
    said = found.error.message if found.error else "no host"
    return f"{said} ({where}{more}{other})"
