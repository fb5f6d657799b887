"""The tick schedule under any wall clock and any delay."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from schemas.units import NS_PER_MS, NS_PER_S, TICK_MS
from vm_agent.ticks import MAX_SLEW_NS, PERIOD_NS, STEP_NS, TickClock, refresh_period_ms

WALL_NS = 1_800_000_000 * NS_PER_S + 123_456_789
MONOTONIC_NS = 5 * NS_PER_S

delays_ns = st.one_of(st.integers(0, 3_000_000), st.integers(0, 5 * PERIOD_NS))
wall_steps_ns = st.one_of(st.just(0), st.integers(-3600 * NS_PER_S, 3600 * NS_PER_S))


@given(st.lists(st.tuples(delays_ns, wall_steps_ns), max_size=60))
def test_ticks_never_repeat_nor_go_back_whatever_the_clocks_do(
    beats: list[tuple[int, int]],
) -> None:
    """Names grow by whole periods, and each period is a tick, a missed one, or stepped over."""
    ticks = TickClock(WALL_NS, MONOTONIC_NS)
    wall_less_monotonic = WALL_NS - MONOTONIC_NS
    last_ms: int | None = None
    last_offset = 0
    for delay_ns, step_ns in beats:
        wall_less_monotonic += step_ns
        due_ns = ticks.due_ns
        now_ns = due_ns + delay_ns
        tick = ticks.begin(now_ns + wall_less_monotonic, now_ns)
        assert tick.tick_ms % TICK_MS == 0
        assert 0 <= tick.late_ns < PERIOD_NS
        assert tick.late_ns + tick.missed * PERIOD_NS == delay_ns
        if last_ms is not None:
            gained = (tick.tick_ms - last_ms) // TICK_MS - 1 - tick.missed
            assert gained == (last_offset // PERIOD_NS if last_offset > STEP_NS else 0)
        gap_ns = ticks.due_ns - due_ns - tick.missed * PERIOD_NS
        assert abs(gap_ns - PERIOD_NS) <= MAX_SLEW_NS
        last_ms, last_offset = tick.tick_ms, tick.offset_ns


@given(st.integers(-NS_PER_S, NS_PER_S))
def test_the_names_come_to_agree_with_a_wall_clock_that_is_off(offset_ns: int) -> None:
    """A second is gone after 200 s of slewing, and then stays gone."""
    ticks = TickClock(WALL_NS, MONOTONIC_NS)
    wall_less_monotonic = WALL_NS - MONOTONIC_NS + offset_ns
    for _ in range(2100):
        tick = ticks.begin(ticks.due_ns + wall_less_monotonic, ticks.due_ns)
    assert abs(tick.offset_ns) <= MAX_SLEW_NS


def test_the_first_tick_is_the_next_multiple_of_the_period() -> None:
    """Due when the wall clock gets there."""
    ticks = TickClock(WALL_NS, MONOTONIC_NS)
    wait_ns = ticks.due_ns - MONOTONIC_NS
    tick = ticks.begin(WALL_NS + wait_ns, ticks.due_ns)
    assert 0 <= wait_ns < PERIOD_NS
    assert tick.tick_ms * NS_PER_MS == WALL_NS + wait_ns
    assert tick.offset_ns == 0


def test_a_new_run_goes_on_after_the_ticks_of_the_old_one() -> None:
    """Also when the wall clock was turned back in between; and it does not wait for it."""
    newest_ms = WALL_NS // NS_PER_MS // TICK_MS * TICK_MS + 3_600_000
    ticks = TickClock(WALL_NS, MONOTONIC_NS, after_ms=newest_ms)
    assert ticks.due_ns - MONOTONIC_NS <= PERIOD_NS
    assert ticks.begin(WALL_NS, ticks.due_ns).tick_ms == newest_ms + TICK_MS


def test_device_counters_are_asked_for_at_10_hz_up_to_20_vms_and_then_less_often() -> None:
    """Stretched in whole ticks, at most to a second."""
    assert {refresh_period_ms(n) for n in (0, 1, 20)} == {100}
    assert refresh_period_ms(21) == 200
    assert refresh_period_ms(100) == 500
    assert refresh_period_ms(5000) == 1000
