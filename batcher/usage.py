"""Usage out of the store: `counter(end) - counter(start)`, to the unit.

`counter(t)` is the greatest value among a VM incarnation's samples with `tick < t`, or 0. It comes
from the rollups for whole days, hours and minutes and from single ticks for the begun minute before
`t`, so a window may start and end at any tick while ticks are kept, at whole minutes for as long as
minutes are, then at whole hours, and in the end at whole days (UTC). All arithmetic is integer:
Int64 in the store, Python's own for sums.

Customers' queries are bound to one customer, and every value from outside travels as a parameter;
`audit_log` is the other module that reads for customers. `host_usage` reads for operators.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from batcher.store import Store
from batcher.usage_sql import USAGE
from batcher.windows import RefusedQueryError, Window, instant_of
from runtime.errors import PoisonError
from schemas.frames import SampleFlag
from schemas.units import MAX_COUNTER
from schemas.usage import UsageQuery, UsageReport, UsageRow
from schemas.vms import METERS

MAX_INCARNATIONS = 100_000
"""In one answer; more are refused before they fill the memory."""


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
    parameters = {"customer": customer_id, "vm_ids": list(query.vm_ids), **window.bounds}
    rows = await bounded(store, USAGE, parameters, limit_s=limit_s)
    vms = tuple(_vm_rows(rows))
    totals = totals_of(vms)
    counted_from = window.counted_from
    return UsageReport(
        customer_id=customer_id,
        start=query.start,
        end=query.end,
        vms=vms,
        totals=totals,
        samples_since=instant_of(counted_from) if counted_from > window.start else None,
    )


async def bounded(
    store: Store, query: str, parameters: Mapping[str, Any], *, limit_s: int
) -> Sequence[Sequence[Any]]:
    """Rows of a usage query, which may take so much and no more. Raises as `report` does."""
    try:
        return await store.query(
            query,
            parameters,
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


def totals_of(vms: Sequence[UsageRow]) -> dict[str, int]:
    """Sums by meter.

    Raises:
        RefusedQueryError: One is more than a counter can be.
    """
    totals = {meter: sum(getattr(row, meter) for row in vms) for meter in METERS}
    if any(total > MAX_COUNTER for total in totals.values()):
        raise RefusedQueryError("a total passes 2^63-1; ask for fewer VMs or a shorter window")
    return totals


def _vm_rows(rows: Sequence[Sequence[Any]]) -> list[UsageRow]:
    by_vm: Mapping[UUID, list[Sequence[Any]]] = defaultdict(list)
    for row in rows:
        by_vm[row[0]].append(row)
    return [vm_row(vm_id, by_vm[vm_id]) for vm_id in sorted(by_vm)]


def vm_row(vm_id: UUID, incarnations: Sequence[Sequence[Any]]) -> UsageRow:
    """A VM's usage, from the rows of its incarnations."""
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
