"""Frames to Arrow: every value arrives, in the store's order, and what cannot is refused."""

from __future__ import annotations

import time
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.batch import table, token
from batcher.flusher import newest
from runtime.errors import PoisonError
from runtime.telemetry import thinned
from schemas.frames import EnrichedFrame
from schemas.ids import new_id
from schemas.units import MAX_COUNTER
from schemas.vms import METERS
from tests.support.store import DAY_NS, Reading, enriched

NOW_NS = time.time_ns()
TICK_MS = NOW_NS // 10**8 * 100

readings = st.builds(
    Reading,
    vm_id=st.uuids(),
    tick_ms=st.just(TICK_MS),
    incarnation=st.integers(0, 2**32 - 1),
    flags=st.integers(0, 7),
    counters=st.fixed_dictionaries({meter: st.integers(0, MAX_COUNTER) for meter in METERS}),
    customer=st.sampled_from(["acme", "globex", "initech"]),
    pool=st.sampled_from(["default", "gpu"]),
    price_plan=st.sampled_from(["default", "gold"]),
)


def rows_of(*frames: EnrichedFrame) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = table(frames, now_ns=NOW_NS, keep_ns=7 * DAY_NS).to_pylist()
    return rows


@settings(deadline=None)
@given(st.lists(st.lists(readings, max_size=5), min_size=1, max_size=5))
def test_every_value_of_every_frame_is_in_the_table(groups: list[list[Reading]]) -> None:
    """Columns are joined as they are; each row keeps its own frame's scalars and names."""
    frames = [
        enriched(group, host=f"h{seq}", seq=seq, collected_at_ns=NOW_NS + seq)
        for seq, group in enumerate(groups)
    ]
    rows = rows_of(*(msgspec.structs.replace(f, tick_ms=TICK_MS) for f in frames))
    got = sorted(
        (
            row["seq"], row["host"], UUID(bytes=bytes(row["vm_id"])),  # type: ignore[call-overload]
            UUID(bytes=bytes(row["run_id"])), row["incarnation"], row["flags"], row["customer_id"],  # type: ignore[call-overload]
            row["pool"], row["price_plan"], *(row[meter] for meter in METERS),
        )
        for row in rows
    )  # fmt: skip
    sent = sorted(
        (
            seq, f"h{seq}", r.vm_id, frames[seq].run_id, r.incarnation, r.flags, r.customer,
            r.pool, r.price_plan, *(r.counters[meter] for meter in METERS),
        )
        for seq, group in enumerate(groups)
        for r in group
    )  # fmt: skip
    assert got == sent


@settings(deadline=None)
@given(st.lists(readings, min_size=2, max_size=20))
def test_rows_come_in_the_order_of_the_store(group: list[Reading]) -> None:
    """Customer first, then the UUID as ClickHouse compares it: second half before the first."""
    keys = [
        (row["customer_id"], bytes(row["vm_id"])[8:], bytes(row["vm_id"])[:8])  # type: ignore[call-overload]
        for row in rows_of(enriched(group))
    ]
    assert keys == sorted(keys)


VMS = [new_id() for _ in range(4)]
CUSTOMERS = ["acme", "globex"]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(VMS), unique=True, max_size=4),
            st.sampled_from(CUSTOMERS),
            st.integers(0, 5),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_frames_of_the_same_and_of_other_vms_are_sorted_alike(
    shapes: list[tuple[list[UUID], str, int]],
) -> None:
    """Whether a set of VMs repeats, comes once or shares a VM with another: no row is lost."""
    frames = [
        enriched(
            [Reading(vm_id, TICK_MS + 100 * tick, customer=customer) for vm_id in vms], seq=seq
        )
        for seq, (vms, customer, tick) in enumerate(shapes)
    ]
    frames = [
        msgspec.structs.replace(frame, tick_ms=TICK_MS + 100 * tick)
        for frame, (_, _, tick) in zip(frames, shapes, strict=True)
    ]
    rows = rows_of(*frames)
    keys = [
        (row["customer_id"], bytes(row["vm_id"])[8:], bytes(row["vm_id"])[:8], row["tick_ms"])  # type: ignore[call-overload]
        for row in rows
    ]
    assert keys == sorted(keys)
    got = sorted((row["seq"], bytes(row["vm_id"]), row["customer_id"]) for row in rows)  # type: ignore[call-overload]
    assert got == sorted(
        (seq, vm_id.bytes, customer)
        for seq, (vms, customer, _) in enumerate(shapes)
        for vm_id in vms
    )


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (enriched([Reading(new_id(), TICK_MS, counters={"cpu_ns": 2**63})]), "counter_overflow"),
        (enriched([Reading(new_id(), TICK_MS + 50)]), "tick_between"),
        (enriched([Reading(new_id(), TICK_MS)], collected_at_ns=1), "collected_when"),
        (
            enriched([Reading(new_id(), TICK_MS)], collected_at_ns=NOW_NS + DAY_NS),
            "collected_when",
        ),
        (
            msgspec.structs.replace(
                enriched([Reading(new_id(), TICK_MS)]), customer_index=b"\x07\x00"
            ),
            "index_outside",
        ),
    ],
)
def test_what_the_store_cannot_hold_is_poison(frame: EnrichedFrame, reason: str) -> None:
    """A bad frame spoils its batch with a reason, so that it can be bisected out."""
    good = enriched([Reading(new_id(), TICK_MS)])
    with pytest.raises(PoisonError) as caught:
        rows_of(good, frame)
    assert caught.value.reason == reason


def test_a_frame_without_rows_adds_none() -> None:
    """A host without VMs still sends frames; they store nothing and break nothing."""
    assert rows_of(enriched([])) == []
    assert len(rows_of(enriched([]), enriched([Reading(new_id(), TICK_MS)]))) == 1


def test_the_token_stands_for_the_content() -> None:
    """Order does not matter; another frame, one collected again, other rows of one do."""
    one = enriched([Reading(new_id(), TICK_MS)], seq=1)
    two = enriched([Reading(new_id(), TICK_MS)], seq=2)
    again = msgspec.structs.replace(one, collected_at_ns=one.collected_at_ns + 1)
    other = msgspec.structs.replace(one, vm_ids=new_id().bytes)
    assert token([one, two]) == token([two, one])
    assert len({token(f) for f in ([one], [two], [one, two], [again], [other])}) == 5


@settings(deadline=None)
@given(st.lists(st.integers(), max_size=50), st.integers(1, 20))
def test_thinning_keeps_the_first_and_the_bound(values: list[int], most: int) -> None:
    """A long list is cut to size evenly, a short one stays whole."""
    kept = thinned(values, most)
    assert len(kept) == min(len(values), most)
    assert kept[:1] == tuple(values[:1])


def test_the_newest_tick_per_host_is_told() -> None:
    """Whatever the order of the frames."""
    vm_id = new_id()
    frames = [
        enriched([Reading(vm_id, TICK_MS + 100 * n)], host=h)
        for h, n in (("a", 2), ("a", 1), ("b", 3))
    ]
    assert newest(frames) == {"a": TICK_MS + 200, "b": TICK_MS + 300}
