"""The past corrected: rows move to their owner to the unit, whatever comes late or dies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from batcher.backfill_rules import RefusedBackfillError
from runtime.errors import TransientError
from runtime.reading import read_stream
from schemas import subjects
from schemas.audit import AuditOutcome, decode_audit_entry
from schemas.corrections import BackfillWish, OwnerCorrection, PlanCorrection
from schemas.ids import new_id
from schemas.vms import METERS, Counters
from tests.support.backfill import ALL, BASE_MS, Past, at, life, own, past, used
from tests.support.store import Reading, enriched, insert


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Past]:
    async with past(tmp_path) as opened:
        yield opened


async def test_an_incarnation_moves_to_its_owner_to_the_unit(store: Past) -> None:
    """From all tables and into all of them; the other incarnations stay; it stands in the audit."""
    vm_id = new_id()
    await store.publish(life(vm_id, range(900)))
    await store.publish(life(vm_id, range(1000, 1100), incarnation=2))
    await store.stored()
    before = await store.used("acme", ALL)
    accepted = await store.correct(own(vm_id, "bolt"))
    assert [(t.customer_id, t.used) for t in accepted.before] == [
        ("acme", used(900)),
        ("bolt", Counters()),
    ]
    assert [(t.customer_id, t.used) for t in accepted.after] == [("bolt", used(900))]
    assert accepted.stranger
    assert await store.used("acme", ALL) == {vm_id: used(100)}
    assert await store.used("bolt", ALL) == {vm_id: used(900)}
    assert before == {
        vm_id: Counters(**{m: getattr(used(900), m) + getattr(used(100), m) for m in METERS})
    }
    # Any window is the new owner's, not just the whole.
    assert (await store.used("bolt", range(300, 700)))[vm_id] == used(401)
    assert set(await store.rows("bolt", vm_id)) == set(await store.rows("acme", vm_id))
    assert (await store.rows("bolt", vm_id))["samples"] == 900

    entry = await store.bucket.get(str(vm_id))
    assert entry is not None
    (noted,) = entry.value.corrections
    assert isinstance(noted, OwnerCorrection)
    assert noted.applied_at is not None
    assert noted.after == (accepted.after[0],)
    entries = [
        decode_audit_entry(message.data) for message in await read_stream(store.bus, subjects.AUDIT)
    ]
    assert [(e.outcome, e.details["phase"], e.reason) for e in entries] == [
        (AuditOutcome.UNDER_WAY, "begun", "because"),
        (AuditOutcome.SUCCEEDED, "ended", "because"),
    ]
    assert {e.details["act_id"] for e in entries} == {str(noted.correction_id)}


async def test_late_and_replayed_frames_go_to_the_new_owner(store: Past) -> None:
    """Enriched before the correction, stored after it: never again under the former owner."""
    vm_id = new_id()
    frames = life(vm_id, range(200))
    await store.publish(frames[:150])
    await store.stored()
    await store.correct(own(vm_id, "bolt", running=True))
    await store.publish(frames[150:])
    await store.publish(frames, again=True)
    await store.stored()
    assert await store.rows("acme", vm_id) == {}
    assert await store.used("bolt", ALL) == {vm_id: used(200)}
    assert (await store.rows("bolt", vm_id))["samples"] == 200


async def test_a_batch_that_was_built_before_and_stored_after_the_move_is_no_loss(
    store: Past,
) -> None:
    """It is stored once more by the correction before its frames are acknowledged, and swept."""
    vm_id, other = new_id(), new_id()
    frames = life(vm_id, range(200))
    await store.publish(frames[:100])
    await store.stored()
    store.store.open.clear()
    await store.publish([*frames[100:], *life(other, range(50))])
    await store.store.waiting.wait()
    await store.correct(own(vm_id, "bolt", running=True), settle=False)
    moving = asyncio.create_task(store.settle(vm_id))
    await asyncio.wait({moving}, timeout=0.3)
    assert not moving.done(), "a batch is in hand that was built by a former view"
    store.store.open.set()
    await moving
    await store.stored()
    assert await store.rows("acme", vm_id) == {}
    assert await store.used("bolt", ALL) == {vm_id: used(200)}
    assert await store.used("acme", ALL) == {other: used(50)}


async def test_a_move_that_dies_between_two_steps_is_completed_by_the_next(store: Past) -> None:
    """Copied in part, deleted in part: nothing is lost, and nothing is there twice at the end."""
    died, lives = [], {}
    for steps in range(9):
        vm_id = new_id()
        lives[vm_id] = life(vm_id, range(300))
        await store.publish(lives[vm_id])
        await store.stored()
        await store.correct(own(vm_id, "bolt"), settle=False)
        store.store.lives = steps
        try:
            await store.settle(vm_id)
        except TransientError:
            died.append(steps)
        store.store.lives = None
    # Four tables are copied and four are cleared.
    assert died == list(range(8))
    for frames in lives.values():
        await store.publish(frames[:100], again=True)
    await store.stored()
    await store.settle(*lives)
    assert await store.used("acme", ALL) == {}
    assert await store.used("bolt", ALL) == dict.fromkeys(sorted(lives), used(300))
    for vm_id in lives:
        assert await store.rows("acme", vm_id) == {}
        entry = await store.bucket.get(str(vm_id))
        assert entry is not None
        (noted,) = entry.value.corrections
        assert noted.applied_at is not None
        assert isinstance(noted, OwnerCorrection)
        assert [total.used for total in noted.after] == [used(300)]


async def test_the_same_once_more_changes_nothing_and_says_so(store: Past) -> None:
    """By number, by time, or a part of it; no second entry in bucket or audit."""
    vm_id = new_id()
    await store.publish(life(vm_id, range(100)))
    await store.stored()
    first = await store.correct(own(vm_id, "bolt"))
    assert not first.unchanged
    by_time = BackfillWish(vm_id=vm_id, customer_id="bolt", since=at(-5), until=at(200))
    for wish in (own(vm_id, "bolt"), by_time):
        again = await store.correct(wish)
        assert again.unchanged
        assert again.correction is not None
        assert first.correction is not None
        assert again.correction.correction_id == first.correction.correction_id
    entry = await store.bucket.get(str(vm_id))
    assert entry is not None
    assert len(entry.value.corrections) == 1
    assert len(await read_stream(store.bus, subjects.AUDIT)) == 2


async def test_back_to_the_first_owner_and_forth_again(store: Past) -> None:
    """The later correction holds, for rows that came under either of them."""
    vm_id = new_id()
    frames = life(vm_id, range(300))
    await store.publish(frames[:100])
    await store.stored()
    for number, customer in enumerate(("bolt", "acme", "corp", "acme", "bolt")):
        await store.correct(own(vm_id, customer, running=True))
        await store.publish(frames[: 100 + 40 * (number + 1)], again=True)
        await store.stored()
        for other in {"acme", "bolt", "corp"} - {customer}:
            assert await store.rows(other, vm_id) == {}
        assert await store.used(customer, ALL) == {vm_id: used(100 + 40 * (number + 1))}


async def test_a_wish_that_cannot_be_fulfilled_is_refused_with_what_to_change(store: Past) -> None:
    """A range that cuts an incarnation, one that still runs, the future, nothing there."""
    vm_id = new_id()
    await store.publish(life(vm_id, range(100)))
    await store.publish(life(vm_id, range(200, 300), incarnation=2, final=False))
    await store.stored()

    async def refused(wish: BackfillWish) -> str:
        with pytest.raises(RefusedBackfillError) as caught:
            await store.correct(wish)
        assert await store.bucket.get(str(vm_id)) is None
        return str(caught.value)

    def by_time(since: int, until: int) -> BackfillWish:
        return BackfillWish(vm_id=vm_id, customer_id="bolt", since=at(since), until=at(until))

    cut = await refused(by_time(50, 150))
    assert f"ran from {at(0).isoformat()} to {at(99).isoformat()}" in cut
    assert f"Give {at(0).isoformat()} to {at(150).isoformat()}" in cut
    assert "cuts incarnation 1" in await refused(by_time(0, 99))
    assert "has not ended" in await refused(by_time(0, 300))
    assert "no samples of this VM in that range" in await refused(by_time(120, 150))
    assert "knows incarnations 1 to 2" in await refused(own(vm_id, "bolt", 1, 3))
    assert "not be after" in await refused(own(vm_id, "bolt", 2, 1))
    late = BackfillWish(
        vm_id=vm_id, customer_id="bolt", since=at(0), until=at(0) + timedelta(days=1)
    )
    assert "only the past" in await refused(late)
    assert "give an owner" in await refused(BackfillWish(vm_id=vm_id, since=at(0), until=at(9)))
    assert "both ends" in await refused(
        BackfillWish(vm_id=vm_id, price_plan="gold", first_incarnation=1, last_incarnation=1)
    )
    huge = new_id()
    for number in (1, 2):
        await insert(
            store.store,
            [enriched([Reading(huge, BASE_MS, number, 2, {"mem_kib_ms": 2**63 - 1})])],
        )
    with pytest.raises(RefusedBackfillError, match="give fewer incarnations"):
        await store.correct(own(huge, "bolt", 1, 2))
    with pytest.raises(RefusedBackfillError, match="no samples of VM"):
        await store.correct(own(new_id(), "bolt"))
    assert await store.used("acme", ALL, vm_id)


async def test_a_plan_is_corrected_from_tick_to_tick(store: Past) -> None:
    """Rows there and rows to come; the later word holds where two overlap; counters stay."""
    vm_id = new_id()
    frames = life(vm_id, range(100))
    await store.publish(frames[:60])
    await store.stored()
    before = await store.used("acme", ALL)

    def wish(since: int, until: int, **words: str) -> BackfillWish:
        return BackfillWish(vm_id=vm_id, since=at(since), until=at(until), **words)  # type: ignore[arg-type]

    gold = await store.correct(wish(20, 80, price_plan="gold", region="north"))
    assert [(r.price_plan, r.region, r.samples) for r in gold.before_rows] == [
        ("default", "local", 40)
    ]
    assert [(r.price_plan, r.region, r.samples) for r in gold.after_rows] == [("gold", "north", 40)]
    assert await store.used("acme", ALL) == before
    await store.correct(wish(50, 70, price_plan="iron", pool="fast"))
    await store.publish(frames, again=True)
    await store.stored()
    await store.settle(vm_id)
    found = await store.store.query(
        "SELECT pool, region, price_plan, min(tick_ms), max(tick_ms), count() FROM samples FINAL"
        " WHERE customer_id = 'acme' GROUP BY pool, region, price_plan ORDER BY min(tick_ms)"
    )
    spans = [
        (p, r, plan, (int(a) - BASE_MS) // 100, (int(b) - BASE_MS) // 100, int(n))
        for p, r, plan, a, b, n in found
    ]
    assert spans == [
        ("default", "local", "default", 0, 99, 40),
        ("default", "north", "gold", 20, 79, 40),
        ("fast", "north", "iron", 50, 69, 20),
    ]
    assert await store.used("acme", ALL) == {vm_id: used(100)}
    entry = await store.bucket.get(str(vm_id))
    assert entry is not None
    assert [isinstance(c, PlanCorrection) and bool(c.applied_at) for c in entry.value.corrections]
    assert (await store.correct(wish(55, 60, price_plan="iron"))).unchanged
    assert not (await store.correct(wish(55, 60, price_plan="gold"))).unchanged


async def test_rows_of_which_only_rollups_are_left_move_too(store: Past) -> None:
    """Ticks expire first, then minutes, then hours: what is left of an incarnation is moved."""
    for expired in range(1, 4):
        vm_id = new_id()
        await store.publish(life(vm_id, range(1500)))
        await store.stored()
        for table in ("samples", "usage_minute", "usage_hour")[:expired]:
            await store.store.command(f"DELETE FROM {table} WHERE 1")  # noqa: S608 - ours
        wish = BackfillWish(
            vm_id=vm_id, customer_id="bolt", since=at(0) - timedelta(days=1), until=at(2000)
        )
        await store.correct(wish)
        assert await store.rows("acme", vm_id) == {}
        assert len(await store.rows("bolt", vm_id)) == 4 - expired
        rows = await store.store.query(
            "SELECT max(cpu_ns), max(net_tx_bytes) FROM usage_day WHERE vm_id = {vm:UUID}",
            {"vm": str(vm_id)},
        )
        assert tuple(map(int, rows[0])) == (used(1500).cpu_ns, used(1500).net_tx_bytes)


async def test_a_move_of_many_ticks_lets_frames_through(store: Past) -> None:
    """An embedded store is not taken up by it: what comes meanwhile is stored meanwhile."""
    vm_id, other = new_id(), new_id()
    await store.store.command(
        """INSERT INTO samples (customer_id, vm_id, incarnation, tick_ms, run_id, seq, host,
            sampled_at_ns, collected_at, flags, uptime_ms, cpu_ns)
        SELECT 'acme', {vm:UUID}, 1, {base:Int64} - 40000000 + 100 * number, {vm:UUID}, number,
            'h', 1, now64(9), if(number = 399999, 2, 0), 100 * number, 7 * number
        FROM numbers(400000)""",
        {"vm": str(vm_id), "base": BASE_MS // 100 * 100},
    )
    await store.correct(own(vm_id, "bolt"), settle=False)
    moving = asyncio.create_task(store.settle(vm_id))
    began_s = time.monotonic()
    await store.publish(life(other, range(20)))
    await store.stored()
    waited_s = time.monotonic() - began_s
    assert not moving.done(), f"the move took less than {waited_s:.2f} s: nothing was seen"
    await moving
    found = await store.store.query(
        "SELECT customer_id, count(), max(cpu_ns) FROM samples WHERE vm_id = {vm:UUID} GROUP BY 1",
        {"vm": str(vm_id)},
    )
    assert [(str(c), int(n), int(m)) for c, n, m in found] == [("bolt", 400_000, 2_799_993)]
