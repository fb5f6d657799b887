"""The queries for usage: which table is read for which part of a window.

`counter(t)` is the greatest value of all whole days before `t`, the whole hours of the begun day,
the whole minutes of the begun hour and the ticks of the begun minute. So each end of a window
costs at most 23 hours, 59 minutes and 599 ticks beside the days, and a window whose ends are whole
minutes, hours or days leaves out the finer tables.
"""

from __future__ import annotations

from schemas.vms import METERS

_OF_CUSTOMER = """customer_id = {customer:String}
        AND (empty({vm_ids:Array(UUID)}) OR has({vm_ids:Array(UUID)}, vm_id))"""
_OF_HOST = """(vm_id, incarnation) IN
        (SELECT vm_id, incarnation FROM incarnation_hosts WHERE host = {host:String})"""


def _near(time: str, level: str) -> str:
    """In one of the two pieces of a window that are read at this level."""
    return (
        f"(({time} >= {{{level}_a:Int64}} AND {time} < {{{level}_b:Int64}})"
        f" OR ({time} >= {{{level}_c:Int64}} AND {time} < {{{level}_d:Int64}}))"
    )


def _counters(time: str, level: str) -> str:
    ends = [f"maxIf({m}, {time} < {{{level}_end:Int64}}) AS {m}_end" for m in METERS]
    starts = [f"maxIf({m}, {time} < {{{level}_start:Int64}}) AS {m}_start" for m in METERS]
    return ", ".join(ends + starts)


def _inside(time: str, level: str) -> str:
    return f"{time} >= {{{level}_first:Int64}} AND {time} < {{{level}_end:Int64}}"


def _rollup(mine: str, keys: str, table: str, time: str, level: str) -> str:
    return f"""
    SELECT
        {keys},
        toUInt8(0) AS flags,
        toUInt64(0) AS ticks,
        max({_inside(time, level)}) AS present,
        {_counters(time, level)}
    FROM {table}
    WHERE {mine} AND {_near(time, level)}
    GROUP BY {keys}"""  # noqa: S608 - put together from our own names only


def _nearby(mine: str, table: str, time: str, level: str) -> str:
    return f"SELECT vm_id, incarnation FROM {table} WHERE {mine} AND {_near(time, level)}"  # noqa: S608 - likewise


def _usage(mine: str, keys: str) -> str:
    """The query.

    The rollups hold several unmerged rows per minute, so bits are united before they are counted.
    Days are read as far back as they go, of the incarnations that may have ticks in the window:
    those of its days, and those that finer tables know of, since days come seconds after ticks.

    Args:
        mine: Whose rows are read.
        keys: A row for each; they end in `vm_id, incarnation`.
    """
    return f"""
SELECT
    {keys},
    groupBitOr(parts.flags) AS flags,
    sum(parts.ticks) AS ticks,
    {", ".join(f"max(parts.{m}_end) - max(parts.{m}_start)" for m in METERS)}
FROM
(
    SELECT
        {keys},
        groupBitOr(usage_day.flags) AS flags,
        toUInt64(0) AS ticks,
        max({_inside("day_ms", "day")}) AS present,
        {_counters("day_ms", "day")}
    FROM usage_day
    WHERE {mine}
        AND (vm_id, incarnation) IN
        (
            SELECT vm_id, incarnation
            FROM usage_day
            WHERE {mine} AND day_ms >= {{day_start:Int64}} AND day_ms < {{end:Int64}}
            UNION DISTINCT {_nearby(mine, "usage_hour", "hour_ms", "hour")}
            UNION DISTINCT {_nearby(mine, "usage_minute", "minute_ms", "minute")}
            UNION DISTINCT {_nearby(mine, "samples", "tick_ms", "tick")}
        )
    GROUP BY {keys}
    UNION ALL {_rollup(mine, keys, "usage_hour", "hour_ms", "hour")}
    UNION ALL {_rollup(mine, keys, "usage_minute", "minute_ms", "minute")}
    UNION ALL
    SELECT
        {keys},
        toUInt8(0) AS flags,
        uniqExactIf(tick_ms, {_inside("tick_ms", "tick")}) AS ticks,
        max({_inside("tick_ms", "tick")}) AS present,
        {_counters("tick_ms", "tick")}
    FROM samples
    WHERE {mine} AND {_near("tick_ms", "tick")}
    GROUP BY {keys}
    UNION ALL
    SELECT
        {keys},
        toUInt8(0) AS flags,
        sum(minute_ticks) AS ticks,
        toUInt8(0) AS present,
        {", ".join(f"toInt64(0) AS {m}_end" for m in METERS)},
        {", ".join(f"toInt64(0) AS {m}_start" for m in METERS)}
    FROM
    (
        SELECT
            {keys},
            toUInt64({" + ".join(f"bitCount(groupBitOr(ticks_{i}))" for i in range(10))})
                AS minute_ticks
        FROM usage_minute
        WHERE {mine}
            AND minute_ms >= {{counted_from:Int64}} AND minute_ms < {{minute_end:Int64}}
        GROUP BY {keys}, minute_ms
    )
    GROUP BY {keys}
) AS parts
GROUP BY {keys}
HAVING max(parts.present)
ORDER BY {keys}
"""  # noqa: S608 - put together from our own column names only


USAGE = _usage(_OF_CUSTOMER, "vm_id, incarnation")
HOST_USAGE = _usage(_OF_HOST, "customer_id, vm_id, incarnation")
