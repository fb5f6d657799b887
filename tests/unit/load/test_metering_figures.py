"""What the benchmark of metering makes of what it sees."""

from __future__ import annotations

import pytest

from tests.load.machine import Load
from tests.load.metering.figures import GOALS, summary
from tests.load.metering.live import next_hz


@pytest.mark.parametrize("ceiling", [0.7, 4.0, 13.0, 37.0, 100.0])
def test_the_search_comes_close_to_the_ceiling(ceiling: float) -> None:
    """From below, whatever it is, in a few steps."""
    held = too_much = None
    steps = 0
    while (hz := next_hz(held, too_much)) is not None:
        steps += 1
        if hz <= ceiling:
            held = hz
        else:
            too_much = hz
    assert held is not None
    assert held <= ceiling <= held * 1.15
    assert steps <= 10


def test_the_search_ends_where_nothing_holds_or_all_does() -> None:
    """Not at zero, and not at more than a flood can send."""
    held: float | None = None
    too_much: float | None = None
    while (hz := next_hz(None, too_much)) is not None:
        too_much = hz
    assert too_much == 0.3125
    while (hz := next_hz(held, None)) is not None:
        held = hz
    assert held == 160.0


def test_what_is_saturated_is_named() -> None:
    """A process, or the whole machine with the one that uses most of it."""
    used = {"batcher": 0.6, "collector": 0.9}
    alone = Load(seconds=1.0, cpu=used, others=0.1, rss_mib={})
    assert alone.saturated(2) == "collector (0.90 of a CPU)"
    crowded = Load(seconds=1.0, cpu=used, others=0.5, rss_mib={})
    assert crowded.saturated(2) == "all CPUs, first of all by collector"
    disturbed = Load(seconds=1.0, cpu={"batcher": 0.6}, others=1.4, rss_mib={})
    assert disturbed.saturated(2) == "all CPUs, first of all by others"


def test_what_was_not_measured_is_null() -> None:
    """A phase that failed has no figure either, and no goal is said to be met."""
    details = {"collector": {"20": {"samples_per_s": 5}}, "size": {"error": "disk full"}}
    found = summary(details, {"cpus": 2})
    assert found["collector_samples_per_s"] == {"1000": None, "100": None, "20": 5}
    assert found["bytes_per_sample"] is None
    assert found["end_to_end"]["lag_ms"] == {"p50": None, "p99": None}
    assert [goal.what for goal in GOALS if goal.get(details) is not None] == [
        "collector, 20 VMs a frame"
    ]
