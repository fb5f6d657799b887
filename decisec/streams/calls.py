"""What a program calls: a replay, the messages of now, and what is missing, in one call each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from uuid import UUID

import msgspec

from decisec.streams import gaps as gap_ledger
from decisec.streams import replay as engine
from decisec.streams import tail as listening
from decisec.streams.acts import check_reason, operator
from decisec.streams.bounds import Bound, parse_bound
from decisec.streams.checkpoint import Plan, Progress
from decisec.streams.columns import parquet
from decisec.streams.decoding import Row
from decisec.streams.gaps import Adjustment, Gap, Loss, Silence
from decisec.streams.selection import Selection
from decisec.streams.tail import Tail
from decisec.streams.targets import (
    GOES_BACK,
    SOURCES,
    BackOntoTheBus,
    Nowhere,
    Printed,
    Target,
    check_route,
    json_lines,
)
from runtime.bus import Bus
from runtime.clock import utc_now
from schemas.ids import parse_uuid, token
from schemas.subjects import HOST_EVENTS, METRICS_ENRICHED, METRICS_REJECTED, VM_COMMANDS, VM_EVENTS

_FUNCTION = "a function"
_FOLLOWED = {
    "frames": (METRICS_ENRICHED,),
    "events": (VM_EVENTS, HOST_EVENTS),
    "commands": (VM_COMMANDS,),
    "rejected": (METRICS_REJECTED,),
}


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay has come to.

    Attributes:
        plan: What was asked for, the bounds as sequences of the stream.
        progress: What was done: messages and samples that went to the target, and what was left
            out, by cause.
        discards_bytes: How much of its oldest the stream had to discard for it, by estimate.
        dry_run: Nothing was sent or written.
    """

    plan: Plan
    progress: Progress
    discards_bytes: int = 0
    dry_run: bool = False

    @property
    def complete(self) -> bool:
        """Whether nothing had been discarded from the stream before it was read."""
        return not self.progress.gone


async def replay(
    bus: Bus,
    source: str,
    into: str | Path | Callable[[Row], None],
    *,
    begin: Bound | str | None = None,
    end: Bound | str | None = None,
    hosts: Collection[str] = (),
    customers: Collection[str] = (),
    vm_ids: Collection[UUID | str] = (),
    speed: float = 0.0,
    again: bool = False,
    reason: str = "",
    actor: str = "",
    dry_run: bool = False,
    told: Callable[[Progress], None] = lambda _: None,
) -> Replayed:
    """Replay a stretch of a stream: planned, audited and run as `decisec replay` does.

    Args:
        bus: The connection; may break in between.
        source: `raw`, `enriched`, `events` or `rejected`, or the stream's name.
        into: `collector` (from `raw`), `batcher` (from `enriched`), the path of a new `.jsonl` or
            `.parquet` file, or a function that is given each row.
        begin: First sequence, or a time; as text also what `--from` takes, such as `-2h`. None for
            the oldest message, which must be said for what goes back onto the bus: give 1.
        end: Last sequence, or the time before which messages were stored. None for the newest.
        hosts: Only these; empty for all.
        customers: Likewise.
        vm_ids: Likewise.
        speed: How many times as fast as the messages were stored; 0 for as fast as it goes.
        again: Take messages that came by a replay themselves as well.
        reason: Why, for the audit; needed for what goes back onto the bus.
        actor: Who, for the audit; user and machine by default.
        dry_run: Count only.
        told: Called whenever there is progress.

    Returns:
        The plan and what was done. Cancelled, a replay stops between messages; what was sent by
        then changes no bill, nor does doing it all again.

    Raises:
        ValueError: What is asked for makes no sense; the message begins with the parameter.
        InvalidIdError: A host, customer or VM is none.
        FatalError: There is no such stream, or the file cannot be written.
        TransientError: The bus is away for longer than half a minute.
    """
    stream = SOURCES.get(source, source)
    target = into if isinstance(into, str) else str(into) if isinstance(into, Path) else _FUNCTION
    selection = Selection(
        hosts=tuple(token(host) for host in hosts),
        customers=tuple(token(customer) for customer in customers),
        vm_ids=tuple(vm if isinstance(vm, UUID) else parse_uuid(vm) for vm in vm_ids),
    )
    check_route(stream, None if callable(into) else target, selection)
    if speed < 0:
        raise ValueError(f"speed: at least 0, not {speed}")
    goes_back = target in GOES_BACK
    if goes_back and not dry_run:
        check_reason(reason)
        if begin is None:
            raise ValueError("begin: say from where on; 1 is the first message of all")
    plan = await engine.plan(
        bus, source=stream, target=target, begin=_bound("begin", begin), end=_bound("end", end),
        selection=selection, speed=0.0 if dry_run else speed, again=again, reason=reason,
    )  # fmt: skip
    discards_bytes = await engine.overflow_bytes(bus, plan)
    with nullcontext(Nowhere()) if dry_run else _open(bus, plan, into) as opened:
        work = engine.Replay(bus, plan, opened, told=told)
        if goes_back and not dry_run:
            await engine.run_audited(bus, work, actor=actor or operator())
        else:
            await work.run()
    return Replayed(
        plan=plan, progress=work.progress, discards_bytes=discards_bytes, dry_run=dry_run
    )


@asynccontextmanager
async def tail(bus: Bus, what: str) -> AsyncIterator[Tail]:
    """Messages as they come while the block lasts: stream and record, one after the other.

    Args:
        bus: The connection.
        what: `frames`, `events`, `commands` or `rejected`, as `decisec tail` has it.

    Raises:
        ValueError: `what` is none of these.
    """
    if what not in _FOLLOWED:
        raise ValueError(f"what: one of {', '.join(_FOLLOWED)}; not {what!r}")
    async with listening.tail(bus, *_FOLLOWED[what]) as following:
        yield following


async def gaps(
    bus: Bus, *, hosts: Collection[str] = (), only_open: bool = False
) -> list[Gap | Silence | Adjustment | Loss]:
    """Holes in the frames of hosts, hosts that sent none or are lost, and what came late.

    Args:
        bus: The connection.
        hosts: Only these; empty for all.
        only_open: Only what is missing or silent still.

    Raises:
        InvalidIdError: A host is none.
        FatalError: There is no stream of host events.
        TransientError: The server did not answer.
    """
    selection = Selection(hosts=tuple(token(host) for host in hosts))
    ledger = await gap_ledger.read_ledger(bus, selection)
    return ledger.all(only_open=only_open)


def _bound(name: str, bound: Bound | str | None) -> Bound | None:
    if not isinstance(bound, str):
        return bound
    try:
        return parse_bound(bound, utc_now())
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _open(
    bus: Bus, plan: Plan, into: str | Path | Callable[[Row], None]
) -> AbstractContextManager[Target]:
    if callable(into):
        return nullcontext(Printed(plan.source, into))
    if plan.target in GOES_BACK:
        return nullcontext(BackOntoTheBus(bus, plan.replay_id))
    path = Path(plan.target)
    return parquet(path) if path.suffix == ".parquet" else json_lines(path, plan.source, None)
