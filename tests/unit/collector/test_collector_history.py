"""The last accepted counters: kept by incarnation, bounded, never mixed up."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from collector.history import _MAX_PLACES, History
from schemas.frames import MAX_ROWS
from schemas.vms import METERS


def key(number: int) -> bytes:
    return number.to_bytes(20, "little")


def accept(history: History, numbers: list[int], tick_ms: int) -> None:
    """Each incarnation's counters are its number."""
    where = history.place([key(n) for n in numbers])
    counters = np.tile(np.array(numbers, np.int64), (len(METERS), 1))
    history.accept(where, tick_ms=tick_ms, run=1, counters=counters)


@given(
    st.lists(
        st.lists(st.integers(1, 500), unique=True, min_size=1, max_size=60), min_size=1, max_size=25
    )
)
def test_every_incarnation_finds_its_own_counters(frames: list[list[int]]) -> None:
    """However sets of VMs follow each other, and through every rearrangement."""
    history = History(late_tolerance_ms=10**9)
    seen: dict[int, int] = {}
    for tick, numbers in enumerate(frames):
        where = history.place([key(n) for n in numbers])
        assert history.ticks(where).tolist() == [seen.get(n, -1) for n in numbers]
        assert history.counters(where)[0].tolist() == [n if n in seen else 0 for n in numbers]
        accept(history, numbers, tick)
        seen |= dict.fromkeys(numbers, tick)


def test_what_is_sampled_no_more_goes_after_the_late_tolerance() -> None:
    """A VM that restarts for ever leaves no trail."""
    history = History(late_tolerance_ms=1000)
    for number in range(1, 5000):
        accept(history, [number], number * 100)
        assert len(history._places) <= 64
    where = history.place([key(4999), key(1)])
    assert history.ticks(where).tolist() == [499_900, -1]


def test_a_flood_of_incarnations_is_bounded() -> None:
    """Beyond four full frames those sampled longest ago go, whatever their age."""
    history = History(late_tolerance_ms=10**9)
    for tick in range(12):
        accept(history, list(range(tick * MAX_ROWS + 1, (tick + 1) * MAX_ROWS + 1)), tick)
    assert len(history._tick_ms) <= 2 * (_MAX_PLACES + MAX_ROWS)
    where = history.place([key(12 * MAX_ROWS)])
    assert history.ticks(where).tolist() == [11]
