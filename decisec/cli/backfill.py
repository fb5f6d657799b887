"""`decisec backfill …`: whose the past was, and by which plan, corrected."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from decisec.cli.acts import Reason, ask_reason, bound, confirm, operator
from decisec.cli.connection import DEFAULT_STATE, NatsUrl, StateDirectory, bus
from decisec.cli.exits import EPILOG, CommandError, Exit
from decisec.cli.output import Json, say, show, show_json, show_text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence
    from datetime import datetime
    from uuid import UUID

    from rich.table import Table

    from decisec.backfill import Corrections
    from schemas.corrections import Backfill, BackfillWish, Correction

T = TypeVar("T")

app = typer.Typer(
    help="Correct the past: who owned a VM, or its pool, region and price plan.",
    no_args_is_help=True,
    epilog=EPILOG,
)

Vms = Annotated[list[str], typer.Option("--vm", metavar="UUID", help="Which VM; repeatable.")]
Since = Annotated[
    str,
    typer.Option("--from", metavar="TIME", help="A time (RFC 3339), or so long ago (-2h).",
                 show_default=False),
]  # fmt: skip
Until = Annotated[
    str,
    typer.Option("--to", metavar="TIME", help="Before this time; not later than now.",
                 show_default=False),
]  # fmt: skip
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what it would come to, and change nothing.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.", show_default=False)]
Within = Annotated[
    float, typer.Option("--timeout", min=1, help="Seconds to wait for all of it to be done.")
]
_VERDICTS = {
    True: "the sums over all customers are the same to the unit",
    False: "the sums over all customers have not become less; what still ran has gone on counting",
}


@app.command(epilog=EPILOG)
def owner(
    customer: Annotated[str, typer.Argument(metavar="CUSTOMER", help="Whose they were.")],
    vm: Vms,
    since: Since = "",
    until: Until = "",
    incarnations: Annotated[
        str,
        typer.Option(
            metavar="A-B", help="Instead of times: from one incarnation to another, or one only.",
            show_default=False,
        ),
    ] = "",
    running: Annotated[
        bool,
        typer.Option(
            "--running",
            help="Also an incarnation that has not ended: what it still uses goes along.",
        ),
    ] = False,
    reason: Reason = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    timeout: Within = 600.0,
    as_json: Json = False,
    nats_url: NatsUrl = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:  # fmt: skip
    """Give incarnations of VMs to the customer whose they were. Safe to repeat.

    An incarnation lasts from a VM's start to its stop and is corrected as a whole.

    Exit code 1 if the sums over all customers are not the same to the unit afterwards.
    """
    first, last = _incarnations(incarnations)
    from schemas.corrections import BackfillWish

    begin, end = _instant("--from", since), _instant("--to", until)
    wishes = [
        BackfillWish(
            vm_id=vm_id,
            customer_id=_customer(customer),
            first_incarnation=first,
            last_incarnation=last,
            since=begin,
            until=end,
            running=running,
        )
        for vm_id in _vm_ids(vm)
    ]
    asyncio.run(
        _backfill(wishes, reason, timeout, nats_url, state_dir,
                  dry_run=dry_run, yes=yes, as_json=as_json)
    )  # fmt: skip


@app.command(epilog=EPILOG)
def plan(
    vm: Vms,
    since: Since,
    until: Until,
    price_plan: Annotated[str, typer.Option(metavar="PLAN", help="The price plan it had.")] = "",
    pool: Annotated[str, typer.Option(help="The pool it was in.")] = "",
    region: Annotated[str, typer.Option(help="The region it was in.")] = "",
    reason: Reason = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    timeout: Within = 600.0,
    as_json: Json = False,
    nats_url: NatsUrl = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Give the samples of VMs in a range of time the plan, pool or region that they had.

    No counter changes. Samples that have expired stand nowhere any more.
    """
    from schemas.corrections import BackfillWish

    begin, end = _instant("--from", since), _instant("--to", until)
    wishes = [
        BackfillWish(
            vm_id=vm_id,
            since=begin,
            until=end,
            price_plan=_word("--price-plan", price_plan),
            pool=_word("--pool", pool),
            region=_word("--region", region),
        )
        for vm_id in _vm_ids(vm)
    ]
    asyncio.run(
        _backfill(wishes, reason, timeout, nats_url, state_dir,
                  dry_run=dry_run, yes=yes, as_json=as_json)
    )  # fmt: skip


@app.command("ls", epilog=EPILOG)
def list_corrections(
    vm: Annotated[
        list[str] | None, typer.Option("--vm", metavar="UUID", help="Only of this VM; repeatable.")
    ] = None,
    as_json: Json = False,
    nats_url: NatsUrl = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """List what was corrected, the oldest first, and whether the store agrees with it yet."""
    from decisec.backfill import Corrections
    from decisec.cli.backfill_tables import corrections_table

    wanted = set(_vm_ids(vm or []))

    async def read() -> list[tuple[UUID, Correction]]:
        async with bus(nats_url, state_dir) as connection:
            every = await Corrections(connection).all()
        return [(vm_id, one) for vm_id, one in every if not wanted or vm_id in wanted]

    found = asyncio.run(read())
    if as_json:
        show_json({"corrections": [{"vm_id": vm_id, "correction": one} for vm_id, one in found]})
    else:
        show(corrections_table(found))


async def _backfill(
    wishes: Sequence[BackfillWish],
    reason: str,
    within_s: float,
    nats_url: str,
    state_dir: Path,
    *,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    from decisec.backfill import Corrections
    from decisec.cli.backfill_tables import preview_tables

    if not dry_run:
        reason = ask_reason(reason)
    async with bus(nats_url, state_dir) as connection:
        corrections = Corrections(connection)
        # All of them first: if one is refused, nothing is done.
        previews = [await _asked(corrections.preview(wish)) for wish in wishes]
        open_ones = [wish for wish, one in zip(wishes, previews, strict=True) if not one.unchanged]
        if dry_run or not open_ones:
            if as_json:
                show_json({"dry_run": dry_run, "vms": previews})
            else:
                _show(preview_tables(previews))
                unchanged = len(previews) - len(open_ones)
                if unchanged:
                    show_text(f"{unchanged} of {len(previews)} VMs: so already, nothing to do")
            return
        if not as_json:
            _show(preview_tables(previews))
        _confirm(previews, wishes[0], yes=yes)
        done = await _done(corrections, open_ones, reason, within_s, quiet=as_json)
    _tell(previews, done, as_json=as_json)


async def _done(
    corrections: Corrections,
    wishes: Sequence[BackfillWish],
    reason: str,
    within_s: float,
    *,
    quiet: bool,
) -> dict[UUID, Correction]:
    """The corrections once they are applied."""
    actor = operator()
    ordered = {}
    for wish in wishes:
        backfill = await _asked(corrections.order(wish, actor, reason))
        if backfill.correction is not None:
            ordered[wish.vm_id] = backfill.correction
    if not quiet:
        say("accepted; rows are being moved ...")
    done = {}
    try:
        async with asyncio.timeout(within_s):
            for vm_id, correction in ordered.items():
                done[vm_id] = await _asked(corrections.applied(vm_id, correction.correction_id))
    except TimeoutError as error:
        raise CommandError(
            f"{len(ordered) - len(done)} of {len(ordered)} VMs are not done within {within_s:g} s. "
            "Batchers go on with them: see `decisec backfill ls` and the batcher's log, or give "
            "the same command again to wait on",
            Exit.UNREACHABLE,
            "under_way",
        ) from error
    return done


def _tell(previews: Sequence[Backfill], done: dict[UUID, Correction], *, as_json: bool) -> None:
    from decisec.backfill import changed
    from decisec.cli.backfill_tables import done_tables

    growing = {one.vm_id for one in previews if any(not known.ended for known in one.incarnations)}
    wrong = {
        vm_id: found
        for vm_id, one in done.items()
        if (found := changed(one, growing=vm_id in growing))
    }
    if as_json:
        show_json(
            {
                "vms": [
                    {
                        "vm_id": one.vm_id,
                        "unchanged": one.vm_id not in done,
                        "correction": done.get(one.vm_id),
                        "changed": wrong.get(one.vm_id, []),
                    }
                    for one in previews
                ],
                "conserved": not wrong,
            }
        )
    else:
        _show(done_tables(done))
        if not wrong:
            show_text(_VERDICTS[growing.isdisjoint(done)])
    for vm_id, found in wrong.items():
        for one in found:
            say(
                f"NOT CONSERVED: VM {vm_id}: {one.meter} was {one.before} over all customers and "
                f"is {one.after} now"
            )
    if wrong:
        raise typer.Exit(Exit.FAILED)


def _show(tables: Sequence[Table]) -> None:
    for table in tables:
        show(table)


def _confirm(previews: Sequence[Backfill], wish: BackfillWish, *, yes: bool) -> None:
    if any(one.stranger for one in previews):
        say(f"nothing is known of a customer {wish.customer_id} so far: is the name right?")
    confirm(f"Correct the past of {len(previews)} VMs?", yes=yes)


async def _asked(question: Awaitable[T]) -> T:
    from decisec.backfill import RefusedError
    from schemas.errors import ErrorCode

    try:
        return await question
    except RefusedError as error:
        codes = {ErrorCode.BAD_REQUEST: Exit.USAGE, ErrorCode.UNAVAILABLE: Exit.UNREACHABLE}
        code = codes.get(error.error.code, Exit.FAILED)
        raise CommandError(error.error.message, code, error.error.code) from error


def _incarnations(text: str) -> tuple[int | None, int | None]:
    if not text:
        return None, None
    first, dash, last = text.partition("-")
    if not (first.isdecimal() and (last.isdecimal() if dash else True)):
        raise CommandError(
            f"--incarnations: {text[:40]!r} is no range such as 3-5 or 4", Exit.USAGE, "usage"
        )
    numbers = int(first), int(last or first)
    if not 1 <= numbers[0] <= numbers[1] < 2**32:
        raise CommandError("--incarnations count from 1 up", Exit.USAGE, "usage")
    return numbers


def _instant(option: str, text: str) -> datetime | None:
    found = bound(option, text)
    if isinstance(found, int):
        raise CommandError(f"{option}: {text!r} is a sequence; give a time", Exit.USAGE, "usage")
    return found


def _vm_ids(texts: Sequence[str]) -> list[UUID]:
    from schemas.errors import InvalidIdError
    from schemas.ids import parse_uuid

    try:
        return list(dict.fromkeys(parse_uuid(text) for text in texts))
    except InvalidIdError as error:
        raise CommandError(f"--vm: {error}", Exit.USAGE, "usage") from error


def _customer(text: str) -> str:
    found = _word("CUSTOMER", text)
    if found is None:
        raise CommandError("CUSTOMER: say whose they were", Exit.USAGE, "usage")
    return found


def _word(option: str, text: str) -> str | None:
    from schemas.errors import InvalidIdError
    from schemas.ids import token

    try:
        return token(text) if text else None
    except InvalidIdError as error:
        raise CommandError(f"{option}: {error}", Exit.USAGE, "usage") from error
