"""Usage out of the store: `counter(end) - counter(start)`, to the unit.

`counter(t)` is the greatest value among a VM incarnation's samples with `tick < t`, or 0. It comes
from the per-minute rollup for whole minutes and from single ticks for the begun minute before `t`,
so a window may start and end at any tick while ticks are kept, and at whole minutes for as long as
the rollup is. All arithmetic is integer: Int64 in the store, Python's own for sums.

This is the one module that reads for customers: each query is bound to one customer, and every
value from outside travels as a parameter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from batcher.store import Store
from runtime.errors import PoisonError
from schemas.frames import SampleFlag
from schemas.units import MAX_COUNTER
from schemas.usage import UsageQuery, UsageReport, UsageRow
from schemas.vms import METERS

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MINUTE_MS = 60_000
_MARGIN = timedelta(days=2)
"""How long before the store's begin its oldest rows may have been collected: the stream of
enriched frames keeps a day."""

MAX_INCARNATIONS = 100_000
"""In one answer; more are refused before they fill the memory."""

_MINE = """customer_id = {customer:String}
        AND (empty({vm_ids:Array(UUID)}) OR has({vm_ids:Array(UUID)}, vm_id))"""

# Three sources: counters out of all minutes of the incarnations that have ticks in or near the
# window (the others add nothing), ticks out of the whole minutes in it, and both out of single
# samples for the begun minutes at its ends. The rollup holds several unmerged rows per minute, so
# bits are united before they are counted.
_QUERY = f"""
SELECT
    vm_id,
    incarnation,
    groupBitOr(parts.flags) AS flags,
    sum(parts.ticks) AS ticks,
    {", ".join(f"max(parts.{m}_end) - max(parts.{m}_start)" for m in METERS)}
FROM
(
    SELECT
        vm_id,
        incarnation,
        groupBitOr(usage_minute.flags) AS flags,
        toUInt64(0) AS ticks,
        {", ".join(f"maxIf({m}, minute_ms < {{end_minute:Int64}}) AS {m}_end" for m in METERS)},
        {", ".join(f"maxIf({m}, minute_ms < {{start_minute:Int64}}) AS {m}_start" for m in METERS)}
    FROM usage_minute
    WHERE {_MINE}
        AND (vm_id, incarnation) IN
        (
            SELECT vm_id, incarnation
            FROM usage_minute
            WHERE {_MINE}
                AND minute_ms >= {{start_minute:Int64}} AND minute_ms < {{end:Int64}}
        )
    GROUP BY vm_id, incarnation
    UNION ALL
    SELECT
        vm_id,
        incarnation,
        toUInt8(0) AS flags,
        sum(minute_ticks) AS ticks,
        {", ".join(f"toInt64(0) AS {m}_end" for m in METERS)},
        {", ".join(f"toInt64(0) AS {m}_start" for m in METERS)}
    FROM
    (
        SELECT
            vm_id,
            incarnation,
            toUInt64({" + ".join(f"bitCount(groupBitOr(ticks_{i}))" for i in range(10))})
                AS minute_ticks
        FROM usage_minute
        WHERE {_MINE}
            AND minute_ms >= {{first_whole:Int64}} AND minute_ms < {{end_minute:Int64}}
        GROUP BY vm_id, incarnation, minute_ms
    )
    GROUP BY vm_id, incarnation
    UNION ALL
    SELECT
        vm_id,
        incarnation,
        toUInt8(0) AS flags,
        uniqExactIf(tick_ms, tick_ms >= {{start:Int64}} AND tick_ms < {{end:Int64}}) AS ticks,
        {", ".join(f"maxIf({m}, tick_ms < {{end:Int64}}) AS {m}_end" for m in METERS)},
        {", ".join(f"maxIf({m}, tick_ms < {{start:Int64}}) AS {m}_start" for m in METERS)}
    FROM samples
    WHERE {_MINE}
        AND (
            (tick_ms >= {{start_minute:Int64}} AND tick_ms < {{first_whole:Int64}})
            OR (tick_ms >= {{end_minute:Int64}} AND tick_ms < {{end:Int64}})
        )
    GROUP BY vm_id, incarnation
) AS parts
GROUP BY vm_id, incarnation
HAVING ticks > 0
ORDER BY vm_id, incarnation
"""  # noqa: S608 - put together from our own column names only


class RefusedQueryError(ValueError):
    """The question cannot be answered as it stands; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Retention:
    """What the store can still know.

    Attributes:
        born: When the store began.
        ticks: How long single ticks are kept.
        minutes: How long the rollup is kept.
    """

    born: datetime
    ticks: timedelta
    minutes: timedelta


@dataclass(frozen=True, slots=True)
class Window:
    """A half-open window in whole ms, and the minutes around its ends.

    Attributes:
        start: First tick inside.
        end: First tick after it.
        start_minute: Begin of the minute that `start` lies in.
        first_whole: Begin of the first minute that begins in the window, or `start`'s own.
        end_minute: Begin of the minute that `end` lies in.
    """

    start: int
    end: int
    start_minute: int
    first_whole: int
    end_minute: int

    @classmethod
    def between(cls, start: datetime, end: datetime) -> Window:
        """The window of two instants; a tick at an instant counts as after it."""
        a, b = _ceil_ms(start), _ceil_ms(end)
        a_minute = a - a % _MINUTE_MS
        return cls(
            a, b, a_minute, a_minute + (_MINUTE_MS if a % _MINUTE_MS else 0), b - b % _MINUTE_MS
        )


def check(query: UsageQuery, retention: Retention, now: datetime) -> Window:
    """The query's window, if it can be answered exactly.

    Raises:
        RefusedQueryError: It is empty, or reaches behind what is kept.
    """
    if query.end <= query.start:
        raise RefusedQueryError("end must be later than start")
    window = Window.between(query.start, query.end)
    # While nothing can have expired, the store knows everything from the beginning of time.
    if now - retention.born + _MARGIN > retention.minutes and query.start < now - retention.minutes:
        raise RefusedQueryError(
            f"usage is kept for {retention.minutes.days} days: start at "
            f"{(now - retention.minutes).isoformat(timespec='minutes')} or later"
        )
    if now - retention.born + _MARGIN > retention.ticks:
        for name, instant, minute in (
            ("start", query.start, window.start_minute),
            ("end", query.end, window.end_minute),
        ):
            whole = _ceil_ms(instant) == minute
            if not whole and _EPOCH + timedelta(milliseconds=minute) < now - retention.ticks:
                raise RefusedQueryError(
                    f"single ticks are kept for {retention.ticks.days} days: "
                    f"give {name} as a whole minute"
                )
    return window


async def report(
    store: Store, customer_id: str, query: UsageQuery, window: Window, *, limit_s: int
) -> UsageReport:
    """What a customer's VMs used in a window.

    Args:
        store: Where to look.
        customer_id: Whose VMs; nobody else's are read.
        query: As `check` passed it.
        window: As `check` gave it.
        limit_s: The engine gives up after this.

    Raises:
        RefusedQueryError: The answer would be too large.
        TransientError, FatalError: As `Store.query` does.
    """
    try:
        rows = await store.query(
            _QUERY,
            {
                "customer": customer_id,
                "vm_ids": list(query.vm_ids),
                "start": window.start,
                "end": window.end,
                "start_minute": window.start_minute,
                "first_whole": window.first_whole,
                "end_minute": window.end_minute,
            },
            settings={
                "max_execution_time": limit_s,
                "max_result_rows": MAX_INCARNATIONS,
                "result_overflow_mode": "throw",
                "max_memory_usage": 2 * 1024**3,
            },
        )
    except PoisonError as error:
        raise RefusedQueryError(
            f"too much for one answer; ask for fewer VMs or a shorter window ({error})"
        ) from error
    vms = tuple(_vm_rows(rows))
    totals = {meter: sum(getattr(row, meter) for row in vms) for meter in METERS}
    if any(total > MAX_COUNTER for total in totals.values()):
        raise RefusedQueryError("a total passes 2^63-1; ask for fewer VMs or a shorter window")
    return UsageReport(
        customer_id=customer_id, start=query.start, end=query.end, vms=vms, totals=totals
    )


def _vm_rows(rows: Sequence[Sequence[Any]]) -> list[UsageRow]:
    by_vm: Mapping[UUID, list[Sequence[Any]]] = defaultdict(list)
    for row in rows:
        by_vm[row[0]].append(row)
    return [_vm_row(vm_id, by_vm[vm_id]) for vm_id in sorted(by_vm)]


def _vm_row(vm_id: UUID, incarnations: Sequence[Sequence[Any]]) -> UsageRow:
    newest = max(incarnations, key=lambda row: int(row[1]))
    used = {
        meter: sum(int(row[4 + number]) for row in incarnations)
        for number, meter in enumerate(METERS)
    }
    return UsageRow(
        vm_id=vm_id,
        incarnations=len(incarnations),
        samples=sum(int(row[3]) for row in incarnations),
        settled=bool(newest[2] & SampleFlag.FINAL),
        simulated=any(row[2] & SampleFlag.SIMULATED for row in incarnations),
        **used,
    )


def _ceil_ms(instant: datetime) -> int:
    return -((_EPOCH - instant) // timedelta(milliseconds=1))
