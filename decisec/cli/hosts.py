"""`decisec host …`: the hosts, and taking one out of service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from decisec.cli.acts import ask_reason, operator
from decisec.cli.connection import DEFAULT_STATE, NatsUrl, StateDirectory, bus
from decisec.cli.exits import EPILOG, CommandError, Exit
from decisec.cli.output import Json, say, show, show_json

if TYPE_CHECKING:
    from runtime.hosts import Hosts, HostView
    from schemas.hosts import HostLoss, HostOrders
    from schemas.vms import VmStatus

app = typer.Typer(help="Look at hosts, take them out of service and back.", no_args_is_help=True,
                  epilog=EPILOG)  # fmt: skip

_TAKEN_WITHIN_S = 5.0
"""An agent that runs has told of an order by then: its heartbeat comes every second."""

HostArgument = Annotated[str, typer.Argument(metavar="HOST", help="Name of the host.")]
Force = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Order it for a host that is not heard of: its agent is down, or still to come.",
        show_default=False,
    ),
]


@dataclass(frozen=True, slots=True)
class _Outcome:
    """An order that stands, whether it is a new one, and the host under it."""

    changed: bool
    order: HostOrders
    host: HostView


@app.command("ls", epilog=EPILOG)
def list_hosts(
    as_json: Json = False, nats_url: NatsUrl = "", state_dir: StateDirectory = DEFAULT_STATE
) -> None:
    """List the hosts, and what is free on them.

    A host is up, draining (takes no new VM), empty (draining, and no VM is left), silent (no
    heartbeat for 5 s) or, with an order but without a heartbeat for 30 s, not heard.
    """
    from decisec.cli.host_tables import hosts_table

    async def read() -> list[HostView]:
        async with _hosts(nats_url, state_dir) as hosts:
            return await hosts.all()

    found = asyncio.run(read())
    if as_json:
        show_json({"hosts": found})
    else:
        show(hosts_table(found))


@app.command(epilog=EPILOG)
def get(
    host: HostArgument,
    as_json: Json = False,
    nats_url: NatsUrl = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Show all there is to know of a host: driver, images, room, order, VMs."""
    import msgspec

    from decisec.cli.host_tables import details_tables

    async def read() -> tuple[HostView, list[VmStatus]]:
        async with _hosts(nats_url, state_dir) as hosts:
            seen = await hosts.get(host)
            if not seen.known:
                raise _unknown(host)
            return seen, await hosts.vms(host)

    _check_name(host)
    found, vms = asyncio.run(read())
    if as_json:
        show_json(msgspec.structs.asdict(found) | {"vms": vms})
        return
    for table in details_tables(found, vms):
        show(table)


@app.command(epilog=EPILOG)
def drain(
    host: HostArgument,
    reason: Annotated[
        str, typer.Option(help="Why, for those who look at the host.", show_default=False)
    ] = "",
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until the host is empty.", show_default=False)
    ] = False,
    timeout: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="With --wait: give up after so many seconds; the order stands.",
            show_default="no limit",
        ),
    ] = None,
    force: Force = False,
    as_json: Json = False,
    nats_url: NatsUrl = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Let a host take no new VM. Those that are there run on: nothing is moved by itself.

    They may be rebooted, stopped and booted as before; the host is empty once all are deleted.
    The order stands until `undrain`, also while the host's agent is down. Safe to repeat.
    """
    from rich.text import Text

    from decisec.cli.host_tables import drain_sentence, order_line

    _check_name(host)
    _check_reason(reason)
    if timeout is not None and not wait:
        raise CommandError("--timeout: only with --wait", Exit.USAGE, "usage")

    async def act() -> _Outcome:
        async with _hosts(nats_url, state_dir) as hosts:
            outcome = await _give(hosts, host, draining=True, reason=reason, force=force)
            return await _empty(hosts, outcome, timeout) if wait else outcome

    outcome = asyncio.run(act())
    if as_json:
        show_json(outcome)
        return
    if not outcome.changed:
        # Text, since a reason may hold brackets.
        show(Text(f"the order stands already: {order_line(outcome.order)}"))
    show(drain_sentence(outcome.host))


@app.command(epilog=EPILOG)
def undrain(
    host: HostArgument,
    force: Force = False,
    as_json: Json = False,
    nats_url: NatsUrl = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Let a host take VMs again, whatever its agent's settings say. Safe to repeat."""
    _check_name(host)

    async def act() -> _Outcome:
        async with _hosts(nats_url, state_dir) as hosts:
            return await _give(hosts, host, draining=False, reason="", force=force)

    outcome = asyncio.run(act())
    if as_json:
        show_json(outcome)
        return
    show(f"{host} takes new VMs" + ("" if outcome.host.heard else " once its agent is heard"))


@app.command(epilog=EPILOG)
def lost(
    host: Annotated[
        str, typer.Argument(metavar="[HOST]", help="Name of the host; none lists those lost.")
    ] = "",
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
    nats_url: NatsUrl = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Declare a host lost: usage answers do not wait for its frames any more.

    They name it, since samples of its VMs may be missing in them. Should its frames come all the
    same, they count, and answers that were complete change; `decisec gaps --adjustments` lists
    them. It stands until `found`; repeating it changes nothing. What a collector has declared
    (DECISEC_COLLECTOR_HOST_LOST_AFTER_S) ends by itself once the host has caught up; declare it to
    let it stand.
    """
    from rich.text import Text

    if host:
        _check_name(host)
        reason = ask_reason(reason)
    elif reason:
        raise CommandError("--reason: only with HOST", Exit.USAGE, "usage")

    async def act() -> list[HostLoss]:
        async with _hosts(nats_url, state_dir) as hosts:
            if not host:
                return await hosts.losses()
            if (await hosts.get(host)).heard and not force:
                raise CommandError(
                    f"{host} is heard of: its frames will come; --force declares it lost anyway",
                    Exit.FAILED,
                    "host_heard",
                )
            if not force and (behind := await hosts.on_its_way(host)):
                raise CommandError(
                    f"frames of {host} are on their way to the store ({', '.join(behind)}), and "
                    "answers would pass them: wait, or give --force",
                    Exit.FAILED,
                    "on_its_way",
                )
            return [await hosts.declare_lost(host, reason=reason, requested_by=operator())]

    found = asyncio.run(act())
    if as_json:
        show_json({"lost_hosts": found})
        return
    for loss in found:
        at = loss.declared_at.isoformat(timespec="seconds")
        show(Text(f"{loss.host_id} is lost since {at}: {loss.reason} ({loss.requested_by})"))


@app.command(epilog=EPILOG)
def found(
    host: HostArgument,
    reason: Annotated[str, typer.Option(help="Why, for the audit.")] = "found again",
    as_json: Json = False,
    nats_url: NatsUrl = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Take back that a host is lost: usage answers wait for its frames again. Safe to repeat.

    No collector declares it lost again before it was heard.
    """
    _check_name(host)
    reason = ask_reason(reason)

    async def act() -> bool:
        async with _hosts(nats_url, state_dir) as hosts:
            return await hosts.declare_found(host, reason=reason, requested_by=operator())

    changed = asyncio.run(act())
    if as_json:
        show_json({"host_id": host, "changed": changed})
        return
    show(f"usage answers wait for {host} again" if changed else f"{host} was not lost")


@asynccontextmanager
async def _hosts(nats_url: str, state_dir: Path) -> AsyncIterator[Hosts]:
    from runtime.hosts import Hosts

    async with bus(nats_url, state_dir) as connection:
        yield Hosts(connection)


async def _give(
    hosts: Hosts, host_id: str, *, draining: bool, reason: str, force: bool
) -> _Outcome:
    """Write an order, and see to it that an agent that runs takes it."""
    before = await hosts.get(host_id)
    repeated = before.order is not None and before.order.draining is draining
    if not (before.known or repeated or force):
        raise _unknown(host_id)
    order, changed = await hosts.order(
        host_id, draining=draining, reason=reason, requested_by=operator()
    )
    seen = await hosts.until(
        host_id, lambda now: now.obeys(order) or not now.heard, within_s=_TAKEN_WITHIN_S
    )
    if seen is None:
        raise CommandError(
            f"the order stands, but the agent of {host_id} does not act on it within "
            f"{_TAKEN_WITHIN_S:g} s: look at its log and its version",
            Exit.FAILED,
            "not_taken",
        )
    return _Outcome(changed, order, seen)


async def _empty(hosts: Hosts, outcome: _Outcome, within_s: float | None) -> _Outcome:
    """Wait until the host has no VM left, and say how it goes."""
    from decisec.cli.host_tables import progress

    said = ""

    def tell(now: HostView | None) -> None:
        nonlocal said
        words = "NATS does not answer, waiting" if now is None else progress(now)
        if words != said:
            say(words)
        said = words

    order = outcome.order
    host_id = order.host_id
    seen = await hosts.until(
        host_id, lambda now: now.empty or now.takes_back(order), within_s=within_s, tell=tell
    )
    if seen is None:
        raise CommandError(
            f"not empty within {within_s:g} s ({said}); the order stands", Exit.FAILED, "not_empty"
        )
    if not seen.empty:
        raise CommandError(
            f"the order to drain {host_id} has been taken back", Exit.FAILED, "taken_back"
        )
    return _Outcome(outcome.changed, order, seen)


def _unknown(host_id: str) -> CommandError:
    return CommandError(
        f"no host {host_id} is heard of: `decisec host ls` shows those that are, and --force "
        "orders for one whose agent is down",
        Exit.NOT_FOUND,
        "host_not_found",
    )


def _check_name(host: str) -> None:
    from schemas.errors import InvalidIdError
    from schemas.ids import token

    try:
        token(host)
    except InvalidIdError as error:
        raise CommandError(f"HOST: {error}", Exit.USAGE, "usage") from error


def _check_reason(reason: str) -> None:
    from schemas.hosts import MAX_REASON

    if len(reason) > MAX_REASON or not reason.isprintable():
        raise CommandError(
            f"--reason: one line of at most {MAX_REASON} characters", Exit.USAGE, "usage"
        )
