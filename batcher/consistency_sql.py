"""The queries that hold a day's ticks and rollups against each other.

Each takes `from` and `to` (Unix ms) and `first_partition` of a UTC day; most a `customer`, and
those that compare or repair a range of VMs, `first_vm` to `last_vm`.
"""

from __future__ import annotations

from dataclasses import dataclass

from batcher.windows import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.store import Level
from schemas.vms import METERS

_TICK_SLOTS = range(10)
_MAXIMA = (*METERS, "last_tick_ms")
_MINE = """customer_id = {customer:String}
            AND vm_id >= {first_vm:UUID} AND vm_id <= {last_vm:UUID}"""
# Ticks ahead of the collector's clock are refused: what was collected two days before a day cannot
# be of that day. `collected_at` itself is slow to read, its partition is known anyhow.
_OF_DAY = """tick_ms >= {from:Int64} AND tick_ms < {to:Int64}
            AND _partition_id >= {first_partition:String}"""


@dataclass(frozen=True, slots=True)
class Rollup:
    """One rollup: its table, the column that says when, its unit, and the columns that are bits."""

    level: Level
    table: str
    time: str
    unit_ms: int
    bits: tuple[str, ...]

    @property
    def collected(self) -> str:
        """The column that says when it was collected, by which it is parted and expires."""
        return "collected_on" if self.level is Level.MINUTE else "collected_in"


ROLLUPS = (
    Rollup(Level.MINUTE, "usage_minute", "minute_ms", MINUTE_MS,
            ("flags", *(f"ticks_{i}" for i in _TICK_SLOTS))),
    Rollup(Level.HOUR, "usage_hour", "hour_ms", HOUR_MS, ("flags",)),
    Rollup(Level.DAY, "usage_day", "day_ms", DAY_MS, ("flags",)),
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


def comparison(rollup: Rollup) -> str:
    """The query for how many rows there are, how many are behind and how many ahead."""
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
            WHERE {_MINE} AND {_OF_DAY}
            GROUP BY vm_id, incarnation, time_ms
            UNION ALL
            SELECT vm_id, incarnation, {rollup.time} AS time_ms, 1 AS side, {kept}
            FROM {rollup.table}
            WHERE {_MINE}
                AND {rollup.time} >= {{from:Int64}} AND {rollup.time} < {{to:Int64}}
            GROUP BY vm_id, incarnation, time_ms
        ) AS sides
        GROUP BY vm_id, incarnation, time_ms
    )"""  # noqa: S608 - put together from our own names only


CUSTOMERS = f"""
    SELECT DISTINCT customer_id FROM samples WHERE {_OF_DAY}
    UNION DISTINCT
    SELECT DISTINCT customer_id FROM usage_day
    WHERE day_ms >= {{from:Int64}} AND day_ms < {{to:Int64}}
    ORDER BY customer_id"""  # noqa: S608 - likewise

# In the store's order of UUIDs, so that neighbours in the list are neighbours in the tables.
VMS = f"""
    SELECT DISTINCT vm_id FROM
    (
        SELECT DISTINCT vm_id FROM samples WHERE customer_id = {{customer:String}} AND {_OF_DAY}
        UNION ALL
        SELECT DISTINCT vm_id FROM usage_day
        WHERE customer_id = {{customer:String}}
            AND day_ms >= {{from:Int64}} AND day_ms < {{to:Int64}}
    )
    ORDER BY vm_id"""  # noqa: S608 - likewise

_MINUTE = ROLLUPS[0]
_MINUTE_COLUMNS = (*_MAXIMA, *_MINUTE.bits)
# The same rows again are what a repair is: they must not be taken for a repeated insert. Hours
# and days follow by their views.
REPAIR = f"""
    INSERT INTO usage_minute
        (customer_id, vm_id, incarnation, minute_ms, collected_on, {", ".join(_MINUTE_COLUMNS)})
    SETTINGS insert_deduplicate = 0, max_bytes_before_external_group_by = 1073741824
    SELECT customer_id, vm_id, incarnation, tick_ms - tick_ms % {MINUTE_MS} AS minute_ms,
        toDate(collected_at) AS collected_on,
        {", ".join(f"{_from_ticks(name)} AS {name}" for name in _MINUTE_COLUMNS)}
    FROM samples
    WHERE {_MINE} AND {_OF_DAY}
    GROUP BY customer_id, vm_id, incarnation, minute_ms, collected_on"""  # noqa: S608 - likewise
