"""Lags of a flood: of every frame, from the moment at which it was due."""

from __future__ import annotations

import time

import numpy as np

from schemas.frames import FramesStored
from schemas.units import NS_PER_MS, TICK_MS
from tests.load.flood.lags import Course, Lags
from tests.load.flood.plan import Plan

FIRST_MS = 1_800_000_000_000


def course(plan: Plan, start_s: float) -> Course:
    """Every third frame is late, if the plan wants any late."""
    fates = np.ones((plan.ticks, 4))
    fates[::3, 0] = 0.0
    return Course(plan, FIRST_MS, start_s, fates)


def stored(host: str, seq: int, at_s: float) -> FramesStored:
    """A batcher's word: all frames up to this one, at a monotonic time."""
    wall_ns = time.time_ns() + round((at_s - time.monotonic()) * 1e9)
    return FramesStored(
        batch_id="b", rows=1, frames=1, stored_at_ns=wall_ns,
        ticks_ms={host: FIRST_MS + seq * TICK_MS},
    )  # fmt: skip


def test_each_frame_counts_from_when_it_was_due() -> None:
    """Those between two words too, and other hosts not at all; frames sent late count as such."""
    start_s = time.monotonic() - 100
    plan = Plan(vms=7)
    told: list[int] = []
    lags = Lags(told.append)
    lags.expect({"h1": course(plan, start_s)})
    lags.take(stored("elsewhere", 5, start_s + 1))
    lags.take(stored("h1", 4, start_s + 1.0))
    lags.take(stored("h1", 4, start_s + 2.0))
    lags.take(stored("h1", 3, start_s + 2.0))
    lags.take(stored("h1", 5, start_s + 60.0))
    report = lags.report()
    assert told == [35, 7]
    assert report["count"] == 6
    # Due at 0 to 0.4 s and stored at 1 s: 1000 to 600 ms; and one due at 0.5 s that hung.
    assert abs(report["max"] - 59_500) <= 3
    assert abs(report["p50"] - 800) <= 3
    assert "early" not in report


def test_frames_that_are_late_on_purpose_are_left_out() -> None:
    """When they come is the plan's doing, and whether they are stored is not told."""
    start_s = time.monotonic() - 100
    plan = Plan(vms=7, late=0.1)
    told: list[int] = []
    lags = Lags(told.append)
    lags.expect({"h1": course(plan, start_s)})
    lags.take(stored("h1", 5, start_s + 1.0))
    assert told == [28]
    assert lags.report()["count"] == 4


def test_what_is_held_back_for_a_burst_is_due_with_it() -> None:
    """The second before every tenth is silent."""
    plan = Plan(burst=True)
    held = course(plan, 9.05)
    assert [held.due_s(seq) for seq in (0, 5, 9)] == [10.0, 10.0, 10.0]
    assert held.due_s(12) == 9.05 + 1.2
    assert course(Plan(), 9.05).due_s(0) == 9.05


def test_what_is_stored_before_it_is_due_is_told() -> None:
    """Clocks that do not agree; and nothing of nobody."""
    lags = Lags()
    assert lags.report() == {}
    start_s = time.monotonic()
    lags.expect({"h1": course(Plan(), start_s)})
    lags.take(stored("h1", 0, start_s - 5.0))
    assert lags.report()["early"] == 1
    assert NS_PER_MS == 10**6
