"""The benchmark of metering in its shortest form: it runs, and its figures have their names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.load.bench_metering import main
from tests.load.metering import baseline

KEYS = {
    "collector_samples_per_s", "collector_through_nats_samples_per_s", "batcher_rows_per_s",
    "batcher_vs_bare_insert_ratio", "baseline_ratio", "end_to_end", "ceiling_samples_per_s",
    "catch_up_ratio", "bytes_per_sample", "machine", "versions", "details",
}  # fmt: skip


def test_a_short_run_writes_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the phases that were run; the others are null, and nothing is lost."""
    out = tmp_path / "bench" / "metering.json"
    words = [
        "--phases",
        "through-nats,end-to-end,cost,size",
        "--seconds",
        "0.5",
        "--hosts",
        "10",
        "--vms",
        "10",
        "--out",
    ]
    assert main([*words, str(out)]) == 0
    found = json.loads(out.read_text())
    assert set(found) == KEYS
    assert set(found["collector_samples_per_s"]) == {"1000", "100", "20"}
    assert found["collector_through_nats_samples_per_s"] > 0
    whole = found["end_to_end"]
    assert (whole["lost"], whole["conserved"], whole["samples"]) == (0, True, 500)
    assert 0 < whole["lag_ms"]["p50"] <= whole["lag_ms"]["p99"]
    assert set(whole["cpu"]) == {"nats-server", "collector", "batcher", "flood"}
    assert 0 < found["bytes_per_sample"] < 100
    [fleet] = found["details"]["cost"]["fleets"]
    assert (fleet["hosts"], fleet["vms_per_host"], fleet["conserved"]) == (10, 10, True)
    used = fleet["cpu_us_per_sample"]
    assert used["all"] >= max(used["nats-server"], used["collector"], used["batcher"]) > 0
    columns = found["details"]["size"]["samples"]["bytes_per_row_by_column"]
    assert columns["cpu_ns"] > columns["vcpus"] > 0
    assert found["ceiling_samples_per_s"] is None
    shown = capsys.readouterr().out
    assert "cost, 10 hosts, 10 VMs each" in shown
    assert "collector through NATS" in shown


async def test_the_baseline_stores_every_sample(tmp_path: Path) -> None:
    """Else its speed would mean nothing."""
    found = await baseline.baseline(tmp_path, 0.1)
    assert found["one_by_one"]["samples"] == 500
    assert found["ratio"] > 1


def test_a_phase_that_fails_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The others' figures stay, and the exit code says so."""
    out = tmp_path / "metering.json"
    # A live rate cannot be shared out among hosts without VMs.
    assert (
        main(["--phases", "catch-up,size", "--seconds", "1", "--vms", "0", "--out", str(out)]) == 1
    )
    found = json.loads(out.read_text())
    assert "ZeroDivisionError" in found["details"]["catch-up"]["error"]
    assert found["bytes_per_sample"] > 0
    assert "catch-up failed" in capsys.readouterr().err


def test_an_unknown_phase_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """In words, before anything is started."""
    with pytest.raises(SystemExit) as ended:
        main(["--phases", "collector,sleep"])
    assert ended.value.code == 2
    assert "no phase sleep" in capsys.readouterr().err
