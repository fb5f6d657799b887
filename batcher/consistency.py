"""Rollups against ticks: where they differ, and the rollups made again from the ticks.

Compared is per customer and UTC day, so that no query outgrows the memory. A rollup that lacks
something is behind; one that knows more than the ticks that are left is ahead, which is no harm
(ticks were lost or removed after they had been counted) and is never taken back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from batcher.store import Store
from batcher.windows import DAY_MS, HOUR_MS, MINUTE_MS, Retention
from runtime.clock import Clock
from schemas.ids import CustomerId
from schemas.store import DayCheck, Difference, Level
from schemas.units import NS_PER_S
from schemas.vms import METERS

_LOOK_AGAIN_AFTER_S = 1.0
_TICK_SLOTS = range(10)
_SETTINGS = {
    "max_execution_time": 300,
    "max_memory_usage": 4 * 1024**3,
    "max_bytes_before_external_group_by": 1024**3,
}
_MAXIMA = (*METERS, "last_tick_ms")
# Ticks ahead of the collector's clock are refused: what was collected before cannot be of the day.
_OF_DAY = """tick_ms >= {from:Int64} AND tick_ms < {to:Int64}
            AND collected_at >= fromUnixTimestamp64Milli({from:Int64}) - toIntervalHour(1)"""


@dataclass(frozen=True, slots=True)
class _Rollup:
    level: Level
    table: str
    time: str
    unit_ms: int
    bits: tuple[str, ...]


_ROLLUPS = (
    _Rollup(Level.MINUTE, "usage_minute", "minute_ms", MINUTE_MS,
            ("flags", *(f"ticks_{i}" for i in _TICK_SLOTS))),
    _Rollup(Level.HOUR, "usage_hour", "hour_ms", HOUR_MS, ("flags",)),
    _Rollup(Level.DAY, "usage_day", "day_ms", DAY_MS, ("flags",)),
)  # fmt: skip


def _from_ticks(name: str) -> str:
    """How a column of a rollup is made of ticks."""
    if name.startswith("ticks_"):
        slot = name.removeprefix("ticks_")
        return (
            "toUInt64(groupBitOrIf(bitShiftLeft(toUInt64(1), intDiv(tick_ms % 6000, 100)), "
            f"intDiv(tick_ms % 60000, 6000) = {slot}))"
        )
    if name == "last_tick_ms":
        return "max(samples.tick_ms)"
    return f"groupBitOr(samples.{name})" if name == "flags" else f"max(samples.{name})"


def _comparison(rollup: _Rollup) -> str:
    names = (*_MAXIMA, *rollup.bits)
    ticks = ", ".join(f"{_from_ticks(name)} AS {name}" for name in names)
    kept = ", ".join(
        f"{'groupBitOr' if name in rollup.bits else 'max'}({rollup.table}.{name}) AS {name}"
        for name in names
    )
    both = ", ".join(
        f"maxIf(sides.{name}, side = {side}) AS {name}_{side}" for name in names for side in (0, 1)
    )

    def beyond(one: int, other: int) -> str:
        maxima = [f"{name}_{one} > {name}_{other}" for name in _MAXIMA]
        bits = [f"bitAnd({name}_{one}, bitNot({name}_{other})) != 0" for name in rollup.bits]
        return " OR ".join(maxima + bits)

    return f"""
    SELECT count(), countIf({beyond(0, 1)}), countIf({beyond(1, 0)})
    FROM
    (
        SELECT vm_id, incarnation, time_ms, {both}
        FROM
        (
            SELECT vm_id, incarnation, tick_ms - tick_ms % {rollup.unit_ms} AS time_ms,
                0 AS side, {ticks}
            FROM samples
            WHERE customer_id = {{customer:String}} AND {_OF_DAY}
            GROUP BY vm_id, incarnation, time_ms
            UNION ALL
            SELECT vm_id, incarnation, {rollup.time} AS time_ms, 1 AS side, {kept}
            FROM {rollup.table}
            WHERE customer_id = {{customer:String}}
                AND {rollup.time} >= {{from:Int64}} AND {rollup.time} < {{to:Int64}}
            GROUP BY vm_id, incarnation, time_ms
        ) AS sides
        GROUP BY vm_id, incarnation, time_ms
    )"""  # noqa: S608 - put together from our own names only


_CUSTOMERS = f"""
    SELECT DISTINCT customer_id FROM samples WHERE {_OF_DAY}
    UNION DISTINCT
    SELECT DISTINCT customer_id FROM usage_day
    WHERE day_ms >= {{from:Int64}} AND day_ms < {{to:Int64}}
    ORDER BY customer_id"""  # noqa: S608 - likewise

_MINUTE = _ROLLUPS[0]
_MINUTE_COLUMNS = (*_MAXIMA, *_MINUTE.bits)
# The same rows again are what a repair is: they must not be taken for a repeated insert. Hours
# and days follow by their views.
_REPAIR = f"""
    INSERT INTO usage_minute
        (customer_id, vm_id, incarnation, minute_ms, collected_on, {", ".join(_MINUTE_COLUMNS)})
    SETTINGS insert_deduplicate = 0, max_bytes_before_external_group_by = 1073741824
    SELECT customer_id, vm_id, incarnation, tick_ms - tick_ms % {MINUTE_MS} AS minute_ms,
        toDate(collected_at) AS collected_on,
        {", ".join(f"{_from_ticks(name)} AS {name}" for name in _MINUTE_COLUMNS)}
    FROM samples
    WHERE customer_id = {{customer:String}} AND {_OF_DAY}
    GROUP BY customer_id, vm_id, incarnation, minute_ms, collected_on"""  # noqa: S608 - likewise


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
        customers = await self._customers(day)
        compared, differences = 0, list[Difference]()
        for customer in customers:
            rows, found = await self._settled(day, customer)
            compared += rows
            differences += found
        return DayCheck(
            day=day, customers=len(customers), compared=compared, differences=tuple(differences)
        )

    async def repair(self, day: date) -> DayCheck:
        """Check a day, and insert the rollups again from the ticks where they are behind.

        Safe to repeat, and to stop anywhere: rollups only grow towards the truth.

        Raises:
            As `Store.query` does.
        """
        found = await self.check(day)
        behind = sorted({d.customer_id for d in found.differences if d.behind})
        left: list[Difference] = []
        for customer in behind:
            await self._store.command(_REPAIR, {"customer": customer, **_bounds(day)})
            left += (await self._settled(day, customer))[1]
        return DayCheck(
            day=day,
            customers=found.customers,
            compared=found.compared,
            differences=found.differences,
            repaired=tuple(behind),
            left=tuple(left),
        )

    async def _customers(self, day: date) -> Sequence[CustomerId]:
        rows = await self._store.query(_CUSTOMERS, _bounds(day), settings=_SETTINGS)
        return [str(row[0]) for row in rows]

    async def _settled(self, day: date, customer: CustomerId) -> tuple[int, list[Difference]]:
        """Rows compared, and differences seen twice.

        A server shows an insert in the ticks a moment before it shows in the rollups.
        """
        compared, found = await self._look(day, customer)
        if found:
            await self._clock.sleep_until(self._clock.monotonic_ns() + self._look_again_after_ns)
            compared, found = await self._look(day, customer)
        return compared, found

    async def _look(self, day: date, customer: CustomerId) -> tuple[int, list[Difference]]:
        compared, found = 0, list[Difference]()
        for rollup in _ROLLUPS:
            rows = await self._store.query(
                _comparison(rollup), {"customer": customer, **_bounds(day)}, settings=_SETTINGS
            )
            count, behind, ahead = (int(number) for number in rows[0])
            compared += count
            if behind or ahead:
                found.append(
                    Difference(customer_id=customer, level=rollup.level, behind=behind, ahead=ahead)
                )
        return compared, found


def _bounds(day: date) -> dict[str, int]:
    begin_ms = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1000
    return {"from": begin_ms, "to": begin_ms + DAY_MS}
