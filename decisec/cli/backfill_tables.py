"""Corrections as tables: what was billed to whom before and after, to the unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

from rich.table import Table

from decisec.backfill import words
from schemas.corrections import (
    Backfill,
    Correction,
    OwnerCorrection,
    PlanCorrection,
    PlanRows,
    Total,
)
from schemas.units import NS_PER_MS, NS_PER_S
from schemas.vms import METERS, Counters

_NOTHING = Counters()


def preview_tables(previews: Sequence[Backfill]) -> list[Table]:
    """What stands in the store, and what will."""
    later = "expected"
    rows = [(one.vm_id, one.before_rows, one.after_rows) for one in previews if one.before_rows]
    return [
        _totals(one.vm_id, one.before, one.after, later)
        for one in previews
        if one.before or one.after
    ] + ([_rows(rows, later)] if rows else [])


def done_tables(done: Mapping[UUID, Correction]) -> list[Table]:
    """What stood in the store, and what stands there now."""
    rows = [
        (vm_id, one.before, one.after)
        for vm_id, one in done.items()
        if isinstance(one, PlanCorrection)
    ]
    return [
        _totals(vm_id, one.before, one.after, "after")
        for vm_id, one in done.items()
        if isinstance(one, OwnerCorrection)
    ] + ([_rows(rows, "after")] if rows else [])


def corrections_table(found: Sequence[tuple[UUID, Correction]]) -> Table:
    """One correction per line."""
    table = Table()
    for heading in ("at", "VM", "what", "from", "to", "state", "by", "reason"):
        table.add_column(heading, no_wrap=heading not in ("reason", "state"))
    for vm_id, one in found:
        ends = ("-", "-")
        if isinstance(one, PlanCorrection):
            ends = (_time(one.from_ms), _time(one.until_ms))
        table.add_row(
            one.at.isoformat(timespec="seconds"), str(vm_id), words(one), *ends,
            "applied" if one.applied_at else one.problem or "under way", one.actor, one.reason,
        )  # fmt: skip
    return table


def _totals(vm_id: UUID, before: Sequence[Total], after: Sequence[Total], later: str) -> Table:
    """A line per meter, for each customer what it was and what it is."""
    table = Table(title=f"VM {vm_id}", title_justify="left")
    table.add_column("meter", no_wrap=True)
    was = {total.customer_id: total.used for total in before}
    now = {total.customer_id: total.used for total in after}
    customers = sorted(was.keys() | now.keys())
    for customer in customers:
        table.add_column(f"{customer}\nbefore", justify="right", no_wrap=True)
        table.add_column(f"{customer}\n{later}", justify="right", no_wrap=True)
    for meter in METERS:
        numbers = [
            str(getattr(side.get(customer, _NOTHING), meter))
            for customer in customers
            for side in (was, now)
        ]
        table.add_row(meter, *numbers)
    return table


def _rows(
    of_vms: Sequence[tuple[UUID, Sequence[PlanRows], Sequence[PlanRows]]], later: str
) -> Table:
    table = Table()
    for heading in ("VM", "when", "price plan", "pool", "region"):
        table.add_column(heading, no_wrap=True)
    table.add_column("samples", justify="right", no_wrap=True)
    for vm_id, before, after in of_vms:
        for when, rows in (("before", before), (later, after)):
            for row in rows:
                table.add_row(
                    str(vm_id), when, row.price_plan, row.pool, row.region, str(row.samples)
                )
    return table


def _time(ms: int) -> str:
    from datetime import UTC, datetime

    at = datetime.fromtimestamp(ms * NS_PER_MS // NS_PER_S, UTC)
    return at.replace(microsecond=ms % 1000 * 1000).isoformat(timespec="milliseconds")
