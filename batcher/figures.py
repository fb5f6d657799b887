"""What stands in the store of one VM: incarnations, what each customer was billed, words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from uuid import UUID

from batcher.backfill_sql import CUSTOMERS, INCARNATIONS, ROWS, TOTALS
from batcher.store import Store
from batcher.windows import DAY_MS, HOUR_MS, MINUTE_MS, instant_of
from schemas.corrections import (
    KnownIncarnation,
    OwnerCorrection,
    PlanCorrection,
    PlanRows,
    Total,
)
from schemas.ids import CustomerId
from schemas.vms import METERS, Counters

_SETTINGS = {"max_execution_time": 300, "max_memory_usage": 4 * 1024**3}


class Figures:
    """Reads one store. Every call raises as `Store.query` does."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def customers(self, vm_id: UUID) -> list[CustomerId]:
        """Under whom rows of a VM stand. Looks at the whole of the rollup per day."""
        rows = await self._store.query(CUSTOMERS, {"vm": str(vm_id)}, settings=_SETTINGS)
        return sorted(str(row[0]) for row in rows)

    async def incarnations(
        self, vm_id: UUID, customers: Sequence[CustomerId], *, deleted: bool
    ) -> list[KnownIncarnation]:
        """The incarnations of a VM, in order.

        Args:
            vm_id: Of which VM.
            customers: Under whom its rows may stand.
            deleted: The VM was deleted: all of them have ended.
        """
        rows = await self._store.query(
            INCARNATIONS, {"customers": list(customers), "vm": str(vm_id)}, settings=_SETTINGS
        )
        newest = max((int(row[0]) for row in rows), default=0)
        return [
            KnownIncarnation(
                incarnation=int(number),
                first_at=instant_of(_first(int(day), int(hour), int(minute), int(tick))),
                last_at=instant_of(int(last)),
                ended=bool(final) or deleted or int(number) < newest,
                customers=tuple(str(customer) for customer in owners),
            )
            for number, day, hour, minute, tick, last, final, owners in rows
        ]

    async def totals(
        self, vm_id: UUID, customers: Sequence[CustomerId], of: OwnerCorrection
    ) -> tuple[Total, ...]:
        """What each customer was billed of the incarnations that a correction concerns."""
        found = await self._counters(vm_id, customers, of)
        by_customer: dict[str, list[Counters]] = defaultdict(list)
        for (customer, _), counters in found.items():
            by_customer[customer].append(counters)
        return tuple(
            Total(customer_id=customer, used=_sum(by_customer[customer]))
            for customer in sorted({*by_customer, of.customer_id})
        )

    async def expected(
        self, vm_id: UUID, customers: Sequence[CustomerId], of: OwnerCorrection
    ) -> tuple[Total, ...]:
        """What `totals` will be once the correction is applied."""
        found = await self._counters(vm_id, customers, of)
        by_incarnation: dict[int, list[Counters]] = defaultdict(list)
        for (_, incarnation), counters in found.items():
            by_incarnation[incarnation].append(counters)
        whole = _sum([_greatest(counters) for counters in by_incarnation.values()])
        return (Total(customer_id=of.customer_id, used=whole),)

    async def rows(
        self, vm_id: UUID, customers: Sequence[CustomerId], of: PlanCorrection
    ) -> tuple[PlanRows, ...]:
        """How many samples stand under which words, in the range of a correction."""
        rows = await self._store.query(
            ROWS,
            {
                "customers": list(customers),
                "vm": str(vm_id),
                "begin": of.from_ms,
                "end": of.until_ms,
            },
            settings=_SETTINGS,
        )
        return tuple(
            PlanRows(pool=str(pool), region=str(region), price_plan=str(plan), samples=int(count))
            for pool, region, plan, count in rows
        )

    async def _counters(
        self, vm_id: UUID, customers: Sequence[CustomerId], of: OwnerCorrection
    ) -> dict[tuple[str, int], Counters]:
        rows = await self._store.query(
            TOTALS,
            {
                "customers": list(customers),
                "vm": str(vm_id),
                "first": of.first_incarnation,
                "last": of.last_incarnation,
            },
            settings=_SETTINGS,
        )
        return {
            (str(row[0]), int(row[1])): Counters(
                **dict(zip(METERS, map(int, row[2:]), strict=True))
            )
            for row in rows
        }


def _sum(several: Sequence[Counters]) -> Counters:
    return Counters(**{m: sum(getattr(one, m) for one in several) for m in METERS})


def _greatest(several: Sequence[Counters]) -> Counters:
    return Counters(**{m: max(getattr(one, m) for one in several) for m in METERS})


def _first(day: int, hour: int, minute: int, tick: int) -> int:
    """When it began, as finely as that is still known: what is finer may have lost its begin."""
    first = day
    for finer, unit in ((hour, DAY_MS), (minute, HOUR_MS), (tick, MINUTE_MS)):
        if not first <= finer < first + unit:
            break
        first = finer
    return first
