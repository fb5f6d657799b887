"""What commands ask of an operator before they act: who, why, of what, and whether in earnest."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from decisec.cli.exits import CommandError, Exit

if TYPE_CHECKING:
    from decisec.streams.bounds import Bound
    from decisec.streams.selection import Selection

Reason = Annotated[
    str, typer.Option("--reason", help="Why, for the audit; asked for on a terminal.",
                      show_default=False)
]  # fmt: skip
HostOption = Annotated[
    list[str] | None, typer.Option("--host", metavar="HOST", help="Only of this host; repeatable.")
]
CustomerOption = Annotated[
    list[str] | None,
    typer.Option("--customer", metavar="CUSTOMER", help="Only of this customer; repeatable."),
]
VmOption = Annotated[
    list[str] | None, typer.Option("--vm", metavar="UUID", help="Only of this VM; repeatable.")
]
From = Annotated[
    str,
    typer.Option(
        "--from",
        metavar="BOUND",
        help="From here on: a stream sequence, a time (RFC 3339), or so long ago (-2h).",
        show_default=False,
    ),
]
To = Annotated[
    str,
    typer.Option(
        "--to",
        metavar="BOUND",
        help="Up to here: a sequence, itself included, or before a time.",
        show_default=False,
    ),
]


def operator() -> str:
    """Who says to do it: a name for people, no proof."""
    from decisec.streams.acts import operator as name

    return name()


def interactive() -> bool:
    """Whether there is somebody to ask."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def ask_reason(reason: str) -> str:
    """The reason, asked for if there is none yet and somebody to ask.

    Raises:
        CommandError: There is none, or it is none.
    """
    from decisec.streams.acts import check_reason

    if not reason and interactive():
        reason = str(typer.prompt("reason", err=True))
    if not reason:
        raise CommandError("--reason: say why; it goes into the audit", Exit.USAGE, "usage")
    try:
        return check_reason(reason)
    except ValueError as error:
        raise CommandError(f"--{error}", Exit.USAGE, "usage") from error


def confirm(question: str, *, yes: bool) -> None:
    """Go on only if it is meant.

    Raises:
        CommandError: There is nobody to ask, and no --yes.
        Abort: The answer is no.
    """
    if yes:
        return
    if not interactive():
        raise CommandError(f"{question} Say --yes if so", Exit.USAGE, "not_confirmed")
    typer.confirm(question, abort=True, err=True)


def selection(
    hosts: list[str] | None, customers: list[str] | None = None, vms: list[str] | None = None
) -> Selection:
    """What the options mean.

    Raises:
        CommandError: One of them is no id.
    """
    from decisec.streams.selection import Selection
    from schemas.errors import InvalidIdError
    from schemas.ids import parse_uuid, token

    try:
        return Selection(
            hosts=tuple(token(host) for host in hosts or ()),
            customers=tuple(token(customer) for customer in customers or ()),
            vm_ids=tuple(parse_uuid(vm) for vm in vms or ()),
        )
    except InvalidIdError as error:
        raise CommandError(str(error), Exit.USAGE, "usage") from error


def bound(option: str, text: str) -> Bound | None:
    """One end of a range; None if it is not given.

    Raises:
        CommandError: It is none.
    """
    from decisec.streams.bounds import parse_bound
    from runtime.clock import utc_now

    if not text:
        return None
    try:
        return parse_bound(text, utc_now())
    except ValueError as error:
        raise CommandError(f"{option}: {error}", Exit.USAGE, "usage") from error
