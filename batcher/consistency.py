"""Rollups against ticks: where they differ, and the rollups made again from the ticks.

Compared is per customer and UTC day and some of the VMs at a time, so that no query outgrows the
memory or holds up the inserts of an embedded store for long. A rollup that lacks something is
behind; one that knows more than the ticks that are left is ahead, which is no harm (ticks were lost
or removed after they had been counted) and is never taken back.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

from batcher.consistency_sql import CUSTOMERS, REPAIR, ROLLUPS, VMS, comparison
from batcher.store import Store
from batcher.windows import DAY_MS, Retention
from runtime.clock import Clock
from schemas.ids import CustomerId
from schemas.store import DayCheck, Difference, Level
from schemas.units import NS_PER_S

_LOOK_AGAIN_AFTER_S = 5.0
_VMS_AT_ONCE = 20
"""Up to 17 million ticks of a day."""

_SETTINGS = {
    "max_execution_time": 300,
    "max_memory_usage": 4 * 1024**3,
    "max_bytes_before_external_group_by": 1024**3,
}
_Parameters = dict[str, int | str]


def checkable(retention: Retention, now: datetime) -> tuple[date, date]:
    """First and last UTC day whose ticks are all kept, as far as they came."""
    oldest = retention.expired_before(retention.ticks, now) or now - retention.ticks
    return oldest.date() + timedelta(days=1), now.date()


class Consistency:
    """Checks and repairs one store's rollups.

    Args:
        look_again_after_s: Differences count that are still there then.
    """

    def __init__(
        self, store: Store, clock: Clock, *, look_again_after_s: float = _LOOK_AGAIN_AFTER_S
    ) -> None:
        self._store = store
        self._clock = clock
        self._look_again_after_ns = int(look_again_after_s * NS_PER_S)

    async def check(self, day: date) -> DayCheck:
        """Compare a day's rollups with its ticks.

        Raises:
            As `Store.query` does.
        """
        return await self._walk(day, repair=False)

    async def repair(self, day: date) -> DayCheck:
        """Check a day, and insert the rollups again from the ticks where they are behind.

        Safe to repeat, and to stop anywhere: rollups only grow towards the truth.

        Raises:
            As `Store.query` does.
        """
        return await self._walk(day, repair=True)

    async def _walk(self, day: date, *, repair: bool) -> DayCheck:
        compared, found, left = 0, list[Difference](), list[Difference]()
        repaired: list[CustomerId] = []
        customers = await self._customers(day)
        for customer in customers:
            before, after = _Sum(customer), _Sum(customer)
            for some in await self._vms(day, customer):
                rows, differences = await self._settled(some)
                compared += rows
                before.add(differences)
                if repair and any(d.behind for d in differences):
                    await self._store.command(REPAIR, some)
                    differences = (await self._settled(some))[1]
                after.add(differences)
            found += before.differences
            if repair and any(d.behind for d in before.differences):
                repaired.append(customer)
                left += after.differences
        return DayCheck(
            day=day,
            customers=len(customers),
            compared=compared,
            differences=tuple(found),
            repaired=tuple(repaired),
            left=tuple(left),
        )

    async def _vms(self, day: date, customer: CustomerId) -> list[_Parameters]:
        """What to compare at once: some neighbouring VMs of a customer's."""
        of_day = {"customer": customer, **_bounds(day)}
        rows = await self._store.query(VMS, of_day, settings=_SETTINGS)
        vms = [str(row[0]) for row in rows]
        parts = [vms[i : i + _VMS_AT_ONCE] for i in range(0, len(vms), _VMS_AT_ONCE)]
        return [{**of_day, "first_vm": part[0], "last_vm": part[-1]} for part in parts]

    async def _customers(self, day: date) -> Sequence[CustomerId]:
        rows = await self._store.query(CUSTOMERS, _bounds(day), settings=_SETTINGS)
        return [str(row[0]) for row in rows]

    async def _settled(self, some: _Parameters) -> tuple[int, list[Difference]]:
        """Rows compared, and differences seen twice.

        Hours and days are stored some seconds after their ticks, see `batcher.rolling`.
        """
        compared, found = await self._look(some)
        if found:
            await self._clock.sleep_until(self._clock.monotonic_ns() + self._look_again_after_ns)
            compared, found = await self._look(some)
        return compared, found

    async def _look(self, some: _Parameters) -> tuple[int, list[Difference]]:
        compared, found = 0, list[Difference]()
        for rollup in ROLLUPS:
            rows = await self._store.query(comparison(rollup), some, settings=_SETTINGS)
            count, behind, ahead = (int(number) for number in rows[0])
            compared += count
            if behind or ahead:
                found.append(
                    Difference(
                        customer_id=str(some["customer"]),
                        level=rollup.level,
                        behind=behind,
                        ahead=ahead,
                    )
                )
        return compared, found


class _Sum:
    """Differences of one customer's VMs, level by level."""

    def __init__(self, customer_id: CustomerId) -> None:
        self._customer_id = customer_id
        self._counts: dict[Level, tuple[int, int]] = {}

    def add(self, differences: Sequence[Difference]) -> None:
        """Count some more."""
        for d in differences:
            behind, ahead = self._counts.get(d.level, (0, 0))
            self._counts[d.level] = (behind + d.behind, ahead + d.ahead)

    @property
    def differences(self) -> list[Difference]:
        """One per level that differs, from minutes to days."""
        return [
            Difference(customer_id=self._customer_id, level=level, behind=behind, ahead=ahead)
            for level in Level
            for behind, ahead in [self._counts.get(level, (0, 0))]
            if behind or ahead
        ]


def _bounds(day: date) -> _Parameters:
    begin_ms = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1000
    return {
        "from": begin_ms,
        "to": begin_ms + DAY_MS,
        "first_partition": (day - timedelta(days=1)).strftime("%Y%m%d"),
    }
