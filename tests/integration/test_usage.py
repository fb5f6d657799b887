"""Usage out of a real chDB: exact whatever happens to the samples on their way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batcher.store import Store
from batcher.windows import RefusedQueryError, Retention, check
from runtime.errors import PoisonError
from schemas.frames import EnrichedFrame, SampleFlag
from schemas.ids import new_id
from schemas.usage import UsageQuery
from schemas.vms import METERS
from tests.support.store import Reading, embedded_store, enriched, insert
from tests.support.usage import (
    EPOCH,
    ask,
    at,
    base_ms,
    expected,
    fresh_customer,
    grown,
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def store(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Store]:
    folder: Path = tmp_path_factory.mktemp("usage")
    async with embedded_store(folder / "store") as opened:
        yield opened


# ── lives of VMs, and what happens to their frames ────────────────────────────────────────────


@dataclass(frozen=True)
class Story:
    """Frames as an honest world sends them, the batches that arrive, windows to ask for."""

    kept: Sequence[Reading]
    batches: Sequence[Sequence[EnrichedFrame]]
    windows: Sequence[tuple[int, int, int]]
    merge: bool


@st.composite
def stories(draw: st.DrawFn) -> Story:
    customer, run_id, base = fresh_customer(), new_id(), base_ms()
    readings: list[Reading] = []
    for _ in range(draw(st.integers(1, 3))):
        readings += draw(lives(customer, base))
    by_tick: dict[int, list[Reading]] = defaultdict(list)
    for reading in readings:
        by_tick[reading.tick_ms].append(reading)
    frames = [
        enriched(rows, run_id=run_id, seq=seq)
        for seq, (_, rows) in enumerate(sorted(by_tick.items()))
    ]
    lost = draw(st.sets(st.integers(0, len(frames) - 1), max_size=len(frames) // 2))
    arrived = [frame for number, frame in enumerate(frames) if number not in lost]
    again = draw(st.lists(st.sampled_from(arrived), max_size=6))
    order = draw(st.permutations([*arrived, *again]))
    cuts = sorted(draw(st.lists(st.integers(0, len(order)), max_size=3)))
    batches = [order[a:b] for a, b in zip([0, *cuts], [*cuts, len(order)], strict=True) if b > a]
    if draw(st.booleans()):
        batches.append(draw(st.sampled_from(batches)))
    ticks = {frame.tick_ms for frame in arrived}
    moment = st.one_of(
        st.integers(-1, 20).map(lambda m: base + m * 60_000),
        st.integers(-10, 12_000).map(lambda d: base + d * 100),
        st.integers(0, 1_200_000).map(lambda ms: base + ms),
        st.sampled_from(sorted(ticks)),
    )
    windows = draw(
        st.lists(
            st.lists(moment, min_size=3, max_size=3, unique=True).map(
                lambda three: (sorted(three)[0], sorted(three)[1], sorted(three)[2])
            ),
            min_size=1,
            max_size=2,
        )
    )
    kept = [reading for reading in readings if reading.tick_ms in ticks]
    return Story(kept, batches, windows, draw(st.integers(0, 4)) == 0)


@st.composite
def lives(draw: st.DrawFn, customer: str, base: int) -> list[Reading]:
    """All incarnations of one VM: baseline, growing counters, mostly a final sample."""
    vm_id, tick = new_id(), base + 100 * draw(st.integers(0, 1500))
    readings: list[Reading] = []
    for incarnation in range(1, draw(st.integers(1, 3)) + 1):
        counters = dict.fromkeys(METERS, 0)
        length = draw(st.integers(1, 8))
        ends = draw(st.booleans())
        for number in range(length):
            flags = SampleFlag(0)
            if number == 0:
                flags |= SampleFlag.BASELINE
            if ends and number == length - 1:
                flags |= SampleFlag.FINAL
            readings.append(
                Reading(vm_id, tick, incarnation, flags, dict(counters), customer=customer)
            )
            tick += 100 * draw(st.sampled_from([1, 1, 2, 7, 150, 599, 600, 601, 1300]))
            for meter in METERS:
                counters[meter] += draw(st.sampled_from([0, 1, 100_000_000, 2**55 + 1]))
    return readings


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(story=stories())
async def test_usage_is_what_its_definition_says(store: Store, story: Story) -> None:
    """Loss, repetition, reordering, replay, other batch borders and merges change no answer."""
    customer = story.kept[0].customer if story.kept else fresh_customer()
    for batch in story.batches:
        await insert(store, batch)
    if story.merge:
        await store.command("OPTIMIZE TABLE samples FINAL")
        await store.command("OPTIMIZE TABLE usage_minute FINAL")
    for start, middle, end in story.windows:
        whole = await ask(store, customer, start, end)
        assert {row.vm_id: row for row in whole.vms} == expected(story.kept, start, end)
        left = await ask(store, customer, start, middle)
        right = await ask(store, customer, middle, end)
        for meter in METERS:
            assert whole.totals[meter] == left.totals[meter] + right.totals[meter]
            assert all(getattr(row, meter) >= 0 for row in (*whole.vms, *left.vms, *right.vms))
        samples = [sum(row.samples for row in part.vms) for part in (whole, left, right)]
        assert samples[0] == samples[1] + samples[2]


# ── single cases ──────────────────────────────────────────────────────────────────────────────


async def test_a_tick_at_the_border_counts_as_after_it(store: Store) -> None:
    """The value seen at `t` belongs to the window that starts at `t`."""
    customer, vm_id, base = fresh_customer(), new_id(), base_ms()
    for number, value in ((0, 0), (5, 50), (10, 90)):
        await insert(
            store, [enriched([grown(vm_id, base + number * 100, value, customer=customer)])]
        )
    before = await ask(store, customer, base, base + 500)
    after = await ask(store, customer, base + 500, base + 2000)
    assert before.totals["cpu_ns"] == 0
    assert after.totals["cpu_ns"] == 90
    assert (before.vms[0].samples, after.vms[0].samples) == (1, 2)


async def test_other_customers_and_other_vms_stay_out(store: Store) -> None:
    """A report holds the asker's VMs only, and of those only the named ones."""
    customer, other, base = fresh_customer(), fresh_customer(), base_ms()
    one, two, foreign = new_id(), new_id(), new_id()
    frame = enriched(
        [
            grown(one, base, 1, customer=customer),
            grown(two, base, 2, customer=customer),
            grown(foreign, base, 4, customer=other),
        ]
    )
    await insert(store, [frame])
    everything = await ask(store, customer, base, base + 60_000)
    assert {row.vm_id for row in everything.vms} == {one, two}
    assert everything.totals["cpu_ns"] == 3
    named = await ask(store, customer, base, base + 60_000, (two, foreign))
    assert [row.vm_id for row in named.vms] == [two]


async def test_a_simulated_vm_says_so(store: Store) -> None:
    """Numbers that were made up are marked in the report."""
    customer, base = fresh_customer(), base_ms()
    reading = grown(new_id(), base, 1, customer=customer, flags=SampleFlag.SIMULATED)
    await insert(store, [enriched([reading])])
    assert (await ask(store, customer, base, base + 100)).vms[0].simulated


async def test_a_retry_after_half_an_insert_completes_the_rollup(store: Store) -> None:
    """A batcher killed after `samples` and before the rollup got the rows: the retry fills it."""
    customer, vm_id, base = fresh_customer(), new_id(), base_ms()
    frames = [enriched([grown(vm_id, base, 7, customer=customer)])]
    await store.command("DETACH TABLE usage_minute_view")
    try:
        await insert(store, frames)
    finally:
        await store.command("ATTACH TABLE usage_minute_view")
    assert (await ask(store, customer, base, base + 60_000)).vms == ()
    for _ in range(2):
        await insert(store, frames)
        answer = await ask(store, customer, base, base + 60_000)
        assert answer.totals["cpu_ns"] == 7
        assert answer.vms[0].samples == 1
    rows = await store.query(
        "SELECT count() FROM samples WHERE customer_id = {c:String}", {"c": customer}
    )
    assert rows[0][0] == 1


async def test_a_row_the_store_refuses_is_poison(store: Store) -> None:
    """A violated constraint is told apart from a store that is away, and stores nothing."""
    customer, base = fresh_customer(), base_ms()
    frames = [enriched([grown(new_id(), base, 7, customer=customer)])]
    await store.command("ALTER TABLE samples ADD CONSTRAINT closed CHECK cpu_ns < 0")
    try:
        with pytest.raises(PoisonError, match="closed"):
            await insert(store, frames)
    finally:
        await store.command("ALTER TABLE samples DROP CONSTRAINT closed")
    assert (await ask(store, customer, base, base + 60_000)).vms == ()


async def test_totals_beyond_the_largest_counter_are_refused(store: Store) -> None:
    """A sum that no reader could decode is an error that says what to do."""
    customer, base = fresh_customer(), base_ms()
    huge = [grown(new_id(), base, 2**63 - 1, customer=customer) for _ in range(2)]
    await insert(store, [enriched(huge)])
    with pytest.raises(RefusedQueryError, match="fewer VMs"):
        await ask(store, customer, base, base + 60_000)


def test_a_window_that_cannot_be_exact_is_refused() -> None:
    """Empty windows, expired minutes and expired ticks are refused; a young store knows all."""
    now = datetime(2030, 6, 1, 12, 0, tzinfo=UTC)
    old = Retention(now - timedelta(days=400), timedelta(days=7), timedelta(days=90))
    young = Retention(now - timedelta(minutes=1), timedelta(days=7), timedelta(days=90))

    def query(start: datetime, end: datetime) -> UsageQuery:
        return UsageQuery(start=start, end=end)

    with pytest.raises(RefusedQueryError, match="later than start"):
        check(query(now, now), old, now)
    with pytest.raises(RefusedQueryError, match=r"7 days: give start as a whole minute"):
        check(query(now - timedelta(days=8, seconds=1), now), old, now)
    begin = now - timedelta(days=10)
    with pytest.raises(RefusedQueryError, match="end as a whole minute"):
        check(query(begin, begin + timedelta(seconds=1)), old, now)
    check(query(now - timedelta(days=8), now - timedelta(seconds=1)), old, now)
    check(query(EPOCH + timedelta(seconds=1), now), young, now)


@pytest.mark.parametrize(
    ("age", "words"),
    [
        (timedelta(days=90, minutes=30), "90 days: give start as a whole hour"),
        (timedelta(days=90, minutes=30, seconds=1), "90 days: give start as a whole hour"),
        (timedelta(days=100), ""),
        (timedelta(days=730, hours=1), r"730 days: give start as a whole day \(00:00 UTC\)"),
        (timedelta(days=800, hours=12), ""),
        (timedelta(days=2556), "2555 days: start at 2023-06-03T12:00"),
    ],
)
def test_the_older_a_window_is_the_coarser_its_ends_must_be(age: timedelta, words: str) -> None:
    """Whole hours once minutes have expired, whole days once hours have; the message says so."""
    now = datetime(2030, 6, 1, 12, 0, tzinfo=UTC)
    old = Retention(now - timedelta(days=4000), timedelta(days=7), timedelta(days=90))
    query = UsageQuery(start=now - age, end=now)
    if words:
        with pytest.raises(RefusedQueryError, match=words):
            check(query, old, now)
    else:
        assert check(query, old, now).start == int((now - age).timestamp()) * 1000


def test_what_an_update_found_expired_is_refused() -> None:
    """A store that got its hours and days late knows nothing of what its minutes had lost."""
    now = datetime(2030, 6, 1, tzinfo=UTC)
    since = now - timedelta(days=80)
    late = Retention(
        now - timedelta(days=400), timedelta(days=7), timedelta(days=90), known_since=since
    )
    with pytest.raises(RefusedQueryError, match="start at 2030-03-13T00:00"):
        check(UsageQuery(start=since - timedelta(days=1), end=now), late, now)
    check(UsageQuery(start=since, end=now), late, now)


def test_ticks_are_counted_as_far_as_minutes_are_kept() -> None:
    """A window that begins before says from when on."""
    now = datetime(2030, 6, 1, 12, 0, 30, tzinfo=UTC)
    old = Retention(now - timedelta(days=400), timedelta(days=7), timedelta(days=90))
    window = check(UsageQuery(start=EPOCH.replace(year=2030), end=now), old, now)
    assert at(window.counted_from) == now - timedelta(days=90)
    assert at(window.bounds["counted_from"]) == datetime(2030, 3, 3, 12, 1, tzinfo=UTC)
