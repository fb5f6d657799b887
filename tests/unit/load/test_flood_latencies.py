"""Percentiles of floods: of all values, to three digits, and such as can be added up."""

from __future__ import annotations

import random

from hdrh.histogram import HdrHistogram

from tests.load.flood.latencies import Latencies


def test_percentiles_are_those_of_all_values() -> None:
    """Within a thousandth; the greatest one exactly."""
    chance = random.Random(7)  # noqa: S311 - nothing secret
    values = sorted(round(chance.lognormvariate(9, 2)) for _ in range(20_000))
    latencies = Latencies()
    for value in values:
        latencies.record(value)
    report = latencies.report()
    for name, rank in (("p50", 10_000), ("p90", 18_000), ("p99", 19_800), ("p999", 19_980)):
        assert abs(report[name] - values[rank - 1] / 1000) <= values[rank - 1] / 1e6 + 0.001
    assert report["max"] == values[-1] / 1000
    assert report["count"] == 20_000
    assert "early" not in report


def test_nothing_is_told_of_nothing() -> None:
    """No zeros that nobody measured."""
    assert Latencies().report() == {}


def test_what_cannot_be_is_counted_and_told() -> None:
    """A latency below zero, and one of more than a week."""
    latencies = Latencies()
    latencies.record(-5)
    latencies.record(10**15, 2)
    report = latencies.report()
    assert (report["early"], report["beyond"], report["count"]) == (1, 2, 3)
    assert report["max"] == 7 * 24 * 3600 * 1000


def test_reports_of_several_runs_can_be_added_up() -> None:
    """By any tool that reads HdrHistogram."""
    runs = [Latencies(), Latencies()]
    for place, run in enumerate(runs):
        for value in range(1, 1001):
            run.record(value * (1 + 99 * place))
    both = HdrHistogram(1, 10**9, 3)
    for run in runs:
        both.decode_and_add(run.report()["hdr"].encode())
    assert both.get_total_count() == 2000
    assert 99_000 <= both.get_value_at_percentile(99.9) <= 100_000
