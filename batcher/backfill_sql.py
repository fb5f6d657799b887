"""The statements that move rows of the past, and that look for rows that are to be moved.

Rows are found by customer, VM and incarnation, which is what all four tables are sorted by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from batcher.consistency_sql import ROLLUPS
from runtime.corrections import Attribution, Words
from schemas.vms import METERS

Parameters = dict[str, object]

_SAMPLE_COLUMNS = (
    "vm_id", "incarnation", "tick_ms", "run_id", "seq", "host", "sampled_at_ns", "collected_at",
    "stored_at", "state", "flags", "mem_bytes", *METERS, "pool", "region", "price_plan", "vcpus",
    "memory_mib",
)  # fmt: skip
_COPY_SETTINGS = """SETTINGS insert_deduplicate = 0, max_partitions_per_insert_block = 0"""


@dataclass(frozen=True, slots=True)
class Level:
    """One table with rows per customer, VM and incarnation.

    Attributes:
        time: The column that says when.
        columns: All but the customer.
    """

    table: str
    time: str
    columns: tuple[str, ...]


LEVELS = (
    Level("samples", "tick_ms", _SAMPLE_COLUMNS),
    *(
        Level(
            r.table,
            r.time,
            ("vm_id", "incarnation", r.time, r.collected, *METERS, "last_tick_ms", *r.bits),
        )
        for r in ROLLUPS
    ),
)
TABLES = tuple(level.table for level in LEVELS)


@dataclass(frozen=True, slots=True)
class Astray:
    """Rows of an incarnation that stand under the wrong customer.

    Attributes:
        customer_id: Under whom they stand.
        owner: Under whom they belong.
        first_ms: Where they begin in `samples`; 0 if there are none.
        last_ms: Where they end there.
    """

    vm_id: UUID
    incarnation: int
    customer_id: str
    owner: str
    first_ms: int
    last_ms: int


def astray(attributions: Sequence[Attribution]) -> tuple[str, Parameters] | None:
    """The query for rows that stand under a wrong customer; None if nobody's owner was corrected.

    A row per customer, VM and incarnation: with the first and the last tick in `samples`.
    """
    parameters: Parameters = {}
    wrong: list[str] = []
    for one in attributions:
        for span in one.owners:
            others = [c for c in one.customers if c != span.value]
            if not others:
                continue
            n = len(wrong)
            parameters |= {
                f"c{n}": others,
                f"v{n}": str(UUID(bytes=one.vm_id)),
                f"a{n}": span.begin,
                f"b{n}": span.end - 1,
            }
            wrong.append(
                f"(customer_id IN {{c{n}:Array(String)}} AND vm_id = {{v{n}:UUID}}"
                f" AND incarnation >= {{a{n}:UInt32}} AND incarnation <= {{b{n}:UInt32}})"
            )
    if not wrong:
        return None
    where = " OR ".join(wrong)
    parts = [_ends(level, where) for level in LEVELS]
    sql = f"""SELECT customer_id, vm_id, incarnation, max(first_ms), max(last_ms)
        FROM ({" UNION ALL ".join(parts)})
        GROUP BY customer_id, vm_id, incarnation ORDER BY vm_id, incarnation, customer_id"""  # noqa: S608 - put together from our own names only
    return sql, parameters


def _ends(level: Level, where: str) -> str:
    ticks = level.table == "samples"
    return f"""SELECT customer_id, vm_id, incarnation,
            {"min(tick_ms)" if ticks else "toInt64(0)"} AS first_ms,
            {"max(tick_ms)" if ticks else "toInt64(0)"} AS last_ms
        FROM {level.table} WHERE {where} GROUP BY customer_id, vm_id, incarnation"""  # noqa: S608 - likewise


def copy(level: Level, rows: Astray, begin: int | None, end: int | None) -> tuple[str, Parameters]:
    """The statement that inserts rows under their owner too; the views feed the coarser rollups.

    Args:
        level: From which table, and into it.
        rows: Which.
        begin: From this time on; None for all.
        end: Before this time.
    """
    columns = ", ".join(level.columns)
    parameters: Parameters = {
        "owner": rows.owner,
        "customer": rows.customer_id,
        "vm": str(rows.vm_id),
        "incarnation": rows.incarnation,
    }
    piece = ""
    if begin is not None and end is not None:
        piece = f" AND {level.time} >= {{begin:Int64}} AND {level.time} < {{end:Int64}}"
        parameters |= {"begin": begin, "end": end}
    sql = f"""INSERT INTO {level.table} (customer_id, {columns}) {_COPY_SETTINGS}
        SELECT {{owner:String}}, {columns} FROM {level.table}
        WHERE customer_id = {{customer:String}} AND vm_id = {{vm:UUID}}
            AND incarnation = {{incarnation:UInt32}}{piece}"""  # noqa: S608 - likewise
    return sql, parameters


def delete(
    table: str, customer_id: str, pairs: Sequence[tuple[UUID, int]], *, wait: bool
) -> tuple[str, Parameters]:
    """The statement that removes a customer's rows of some incarnations.

    Args:
        table: Where.
        customer_id: Whose.
        pairs: VMs and incarnations.
        wait: Return only once all replicas have done so; else it is done in the background.
    """
    sql = f"""DELETE FROM {table} WHERE customer_id = {{customer:String}}
        AND (vm_id, incarnation) IN {{pairs:Array(Tuple(UUID, UInt32))}}
        SETTINGS lightweight_deletes_sync = {2 if wait else 0}"""  # noqa: S608 - likewise
    return sql, {"customer": customer_id, "pairs": [(str(vm), number) for vm, number in pairs]}


_WORDS = ("pool", "region", "price_plan")


def _of_span(one: Attribution, number: int) -> tuple[str, Parameters]:
    span = one.words[number]
    where = """customer_id IN {customers:Array(String)} AND vm_id = {vm:UUID}
        AND tick_ms >= {begin:Int64} AND tick_ms < {end:Int64}"""
    return where, {
        "customers": list(one.customers),
        "vm": str(UUID(bytes=one.vm_id)),
        "begin": span.begin,
        "end": span.end,
    }


def _said(words: Words) -> dict[str, object]:
    return {name: word for name in _WORDS if (word := getattr(words, name)) is not None}


def other_words(one: Attribution, number: int) -> tuple[str, Parameters]:
    """The query for how many samples in a span of ticks have other words than they should."""
    where, parameters = _of_span(one, number)
    said = _said(one.words[number].value)
    differs = " OR ".join(f"{name} != {{{name}:String}}" for name in said)
    return (
        f"SELECT count() FROM samples WHERE {where} AND ({differs})",  # noqa: S608 - likewise
        parameters | said,
    )


def set_words(one: Attribution, number: int, *, wait: bool) -> tuple[str, Parameters]:
    """The statement that gives the samples in a span of ticks the words that they should have."""
    where, parameters = _of_span(one, number)
    said = _said(one.words[number].value)
    values = ", ".join(f"{name} = {{{name}:String}}" for name in said)
    return (
        f"ALTER TABLE samples UPDATE {values} WHERE {where}"
        f" SETTINGS mutations_sync = {2 if wait else 0}",
        parameters | said,
    )


UNDER_WAY = """SELECT count(), anyIf(latest_fail_reason, latest_fail_reason != '')
    FROM system.mutations
    WHERE database = {database:String} AND table IN {tables:Array(String)} AND NOT is_done"""

_OF_VM = """customer_id IN {customers:Array(String)} AND vm_id = {vm:UUID}
    AND incarnation >= {first:UInt32} AND incarnation <= {last:UInt32}"""

TOTALS = f"""SELECT customer_id, incarnation, {", ".join(f"max({m})" for m in METERS)}
    FROM ({
    " UNION ALL ".join(
        f"SELECT customer_id, incarnation, {', '.join(METERS)} FROM {table} WHERE {_OF_VM}"
        for table in TABLES
    )
}) GROUP BY customer_id, incarnation ORDER BY customer_id, incarnation"""  # noqa: S608 - likewise

ROWS = """SELECT pool, region, price_plan, uniqExact(tick_ms, incarnation) FROM samples
    WHERE customer_id IN {customers:Array(String)} AND vm_id = {vm:UUID}
        AND tick_ms >= {begin:Int64} AND tick_ms < {end:Int64}
    GROUP BY pool, region, price_plan ORDER BY pool, region, price_plan"""

CUSTOMERS = "SELECT DISTINCT customer_id FROM usage_day WHERE vm_id = {vm:UUID}"

# When an incarnation began is known to the unit of the finest rollup that still has its begin.
INCARNATIONS = """SELECT incarnation, min(day_ms), minIf(hour_ms, hour_ms > 0),
        minIf(minute_ms, minute_ms > 0), minIf(tick_ms, tick_ms > 0), max(last_ms),
        max(final), arraySort(groupUniqArray(customer_id))
    FROM
    (
        SELECT incarnation, customer_id, day_ms, toInt64(0) AS hour_ms, toInt64(0) AS minute_ms,
            toInt64(0) AS tick_ms, last_tick_ms AS last_ms, bitAnd(flags, 2) AS final
        FROM usage_day WHERE customer_id IN {customers:Array(String)} AND vm_id = {vm:UUID}
        UNION ALL
        SELECT incarnation, customer_id, 9223372036854775807, min(usage_hour.hour_ms), 0, 0, 0, 0
        FROM usage_hour WHERE customer_id IN {customers:Array(String)} AND vm_id = {vm:UUID}
        GROUP BY incarnation, customer_id
        UNION ALL
        SELECT incarnation, customer_id, 9223372036854775807, 0, min(usage_minute.minute_ms), 0,
            0, 0
        FROM usage_minute WHERE customer_id IN {customers:Array(String)} AND vm_id = {vm:UUID}
        GROUP BY incarnation, customer_id
        UNION ALL
        SELECT incarnation, customer_id, 9223372036854775807, 0, 0, min(samples.tick_ms), 0, 0
        FROM samples WHERE customer_id IN {customers:Array(String)} AND vm_id = {vm:UUID}
        GROUP BY incarnation, customer_id
    )
    GROUP BY incarnation
    ORDER BY incarnation"""
