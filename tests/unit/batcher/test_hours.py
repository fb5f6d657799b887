"""Hours made of samples, against the same thing done row by row."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from batcher.batch import table
from batcher.hours import apart, hours, together
from schemas.ids import new_id
from schemas.vms import METERS
from tests.support.store import DAY_NS, Reading, enriched

HOUR_MS = 3_600_000
VMS = [new_id() for _ in range(4)]
BEGIN_MS = 1_900_000_000_000 // HOUR_MS * HOUR_MS

readings = st.builds(
    Reading,
    vm_id=st.sampled_from(VMS),
    tick_ms=st.integers(-20, 20).map(lambda n: BEGIN_MS + 360_000 * n),
    incarnation=st.integers(1, 2),
    flags=st.integers(0, 3),
    counters=st.fixed_dictionaries({meter: st.integers(0, 2**63 - 1) for meter in METERS}),
    customer=st.sampled_from(["acme", "zeta"]),
)

Key = tuple[str, UUID, int, int]


def by_hand(given: list[Reading]) -> dict[Key, dict[str, int]]:
    found: dict[Key, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for one in given:
        hour = one.tick_ms - one.tick_ms % HOUR_MS
        row = found[one.customer, one.vm_id, one.incarnation, hour]
        for meter in METERS:
            row[meter] = max(row[meter], one.counters[meter])
        row["flags"] |= one.flags
        row["last_tick_ms"] = max(row["last_tick_ms"], one.tick_ms)
    return found


def united(rows: list[dict[str, Any]]) -> dict[Key, dict[str, int]]:
    """As the table unites them: neighbours or not."""
    found: dict[Key, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for one in rows:
        key = one["customer_id"], UUID(bytes=one["vm_id"]), one["incarnation"], one["hour_ms"]
        for name in (*METERS, "last_tick_ms"):
            found[key][name] = max(found[key][name], one[name])
        found[key]["flags"] |= one["flags"]
    return found


@given(st.lists(st.lists(readings, min_size=1, max_size=12), min_size=1, max_size=4))
def test_hours_are_the_greatest_of_their_samples(batches: list[list[Reading]]) -> None:
    """Of several batches with other customers in them, united as the store does."""
    now_ns = time.time_ns()
    tables = [
        table(
            [enriched([one], seq=n) for n, one in enumerate(batch)], now_ns=now_ns, keep_ns=DAY_NS
        )
        for batch in batches
    ]
    rows = together([hours(one) for one in tables])
    assert united(rows.to_pylist()) == by_hand([one for batch in batches for one in batch])


def test_a_host_s_ticks_of_an_hour_are_one_row_for_each_vm() -> None:
    """However many ticks there are."""
    frames = [enriched([Reading(vm, BEGIN_MS + 100 * n) for vm in VMS], seq=n) for n in range(10)]
    rows = hours(table(frames, now_ns=time.time_ns(), keep_ns=DAY_NS))
    assert rows.num_rows == len(VMS)


def test_samples_collected_in_two_months_are_two_rows() -> None:
    """The rollup is parted by the month of collection."""
    november, december = 1_796_083_199 * 10**9, 1_796_083_201 * 10**9
    frames = [
        enriched([Reading(VMS[0], BEGIN_MS)], seq=n, collected_at_ns=at)
        for n, at in enumerate((november, december))
    ]
    rows = hours(table(frames, now_ns=december, keep_ns=DAY_NS)).to_pylist()
    assert [str(row["collected_in"]) for row in rows] == ["2026-11-01", "2026-12-01"]


def test_samples_say_that_their_hours_come_apart() -> None:
    """In one more column, and nothing else changes."""
    rows = table([enriched([Reading(VMS[0], BEGIN_MS)])], now_ns=time.time_ns(), keep_ns=DAY_NS)
    said = apart(rows)
    assert said.column("hours_apart").to_pylist() == [1]
    assert said.drop_columns(["hours_apart"]).equals(rows)
