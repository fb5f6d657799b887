"""The query for many windows at once: the greatest counters of each, and of all that lies before.

`pieces` says which level is read where. A slot is the number of a window, -1 for what lies before
all of them.
"""

from __future__ import annotations

from schemas.vms import METERS

_MINE = """customer_id = {customer:String}
        AND (empty({vm_ids:Array(UUID)}) OR has({vm_ids:Array(UUID)}, vm_id))"""
_TABLES = {
    "tick": ("samples", "tick_ms"),
    "minute": ("usage_minute", "minute_ms"),
    "hour": ("usage_hour", "hour_ms"),
    "day": ("usage_day", "day_ms"),
}


def _in(level: str, *numbers: int) -> str:
    time = _TABLES[level][1]
    pieces = (
        f"({time} >= {{{level}_a{number}:Int64}} AND {time} < {{{level}_b{number}:Int64}})"
        for number in numbers
    )
    return f"({' OR '.join(pieces)})"


def _slot(time: str) -> str:
    count = f"arrayCount(edge -> edge <= {time}, {{edges:Array(Int64)}})"
    return f"toInt32(if({time} < {{start:Int64}}, 0, {count})) - 1 AS slot"


def _level(level: str) -> str:
    table, time = _TABLES[level]
    ticks = f"uniqExactIf(tick_ms, {_in(level, 1, 2)})" if level == "tick" else "toUInt64(0)"
    memory = "max(mem_bytes)" if level == "tick" else "toInt64(0)"
    old = f"AND ({_in(level, 1, 2)} OR (vm_id, incarnation) IN ({_PRESENT}))"
    return f"""
    SELECT
        vm_id, incarnation, {_slot(time)},
        groupBitOr({table}.flags) AS bits,
        {ticks} AS ticks,
        {memory} AS memory,
        {", ".join(f"max({table}.{m}) AS {m}_top" for m in METERS)}
    FROM {table}
    WHERE {_MINE} AND {_in(level, 0, 1, 2)} {old if level == "day" else ""}
    GROUP BY vm_id, incarnation, slot"""  # noqa: S608 - put together from our own names only


_PRESENT = " UNION DISTINCT ".join(
    f"SELECT vm_id, incarnation FROM {table} WHERE {_MINE} AND {_in(level, 1, 2)}"  # noqa: S608 - likewise
    for level, (table, _) in _TABLES.items()
)
"""Incarnations with rows in the windows: of no other one is it of use what it was before."""

WINDOWED = f"""
SELECT
    vm_id, incarnation, slot,
    groupBitOr(parts.bits),
    sum(parts.ticks),
    max(parts.memory),
    {", ".join(f"max(parts.{m}_top)" for m in METERS)}
FROM
(
    {" UNION ALL ".join(_level(level) for level in _TABLES)}
    UNION ALL
    SELECT
        vm_id, incarnation, {_slot("minute_ms")},
        toUInt8(0) AS bits,
        sum(minute_ticks) AS ticks,
        toInt64(0) AS memory,
        {", ".join(f"toInt64(0) AS {m}_top" for m in METERS)}
    FROM
    (
        SELECT
            vm_id, incarnation, minute_ms,
            toUInt64({" + ".join(f"bitCount(groupBitOr(ticks_{i}))" for i in range(10))})
                AS minute_ticks
        FROM usage_minute
        WHERE {_MINE}
            AND minute_ms >= {{counted_a:Int64}} AND minute_ms < {{counted_b:Int64}}
        GROUP BY vm_id, incarnation, minute_ms
    )
    GROUP BY vm_id, incarnation, slot
) AS parts
GROUP BY vm_id, incarnation, slot
"""  # noqa: S608 - put together from our own column names only
