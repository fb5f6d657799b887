"""`decisec events`, `metrics` and `usage --by` against a running stack."""

from __future__ import annotations

import csv
import io
import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from decisec.cli.exits import Exit
from tests.support.dev_stack import START_S, Program, program, simulated_stack
from tests.support.shell import Shell


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory where a stack of simulated VMs runs on `.decisec`: commands look there."""
    with simulated_stack(tmp_path_factory.mktemp("cli")) as folder:
        yield folder


@pytest.fixture
def shell(stack: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A shell beside the stack."""
    return Shell(stack, capfd, monkeypatch)


@pytest.fixture
def vm(shell: Shell) -> Iterator[str]:
    """A running VM named `web`, with a label, deleted afterwards."""
    made = shell("vm", "create", "--name", "web", "--label", "team=a", "--boot", "--json")
    vm_id: str = made.json["vm"]["vm_id"]
    yield vm_id
    assert shell("vm", "delete", vm_id).code in (Exit.OK, Exit.NOT_FOUND)


@contextmanager
def running(stack: Path, *arguments: str) -> Iterator[Program]:
    """A command that goes on, until Ctrl-C."""
    # A state directory of its own: what runs on the stack's is not this program's to end.
    with program(*arguments, cwd=stack, state_dir=stack / "none") as says:
        yield says
        says.signal(signal.SIGINT)
        assert says.wait() == Exit.INTERRUPTED


def lines(says: Program, count: int) -> list[dict[str, Any]]:
    """So many lines of JSON."""
    give_up = time.monotonic() + START_S
    while says.stdout.count("\n") < count:
        assert time.monotonic() < give_up, says.stdout
        time.sleep(0.02)
    return [json.loads(line) for line in says.stdout.splitlines()[:count]]


def eventually(check: Any) -> None:
    """Return once it holds: the store is a moment behind."""
    give_up = time.monotonic() + START_S
    while not check():
        assert time.monotonic() < give_up
        time.sleep(0.1)


def test_events_are_listed_and_followed(shell: Shell, stack: Path, vm: str) -> None:
    """What is listed and what follows it: each event once, whatever filters."""

    def both() -> bool:
        found = shell("events", "--vm", "web", "--json").json["events"]
        return [event["type"] for event in found] == ["vm_created", "vm_started"]

    eventually(both)
    listed = shell("events", "--vm", vm, "-n", "1")
    assert "vm_started" in listed.out
    assert "vm_created" not in listed.out
    with running(stack, "events", "-f", "-n", "2", "--vm", vm, "--json") as says:
        assert [line["type"] for line in lines(says, 2)] == ["vm_created", "vm_started"]
        assert shell("vm", "pause", vm).code == 0
        assert shell("vm", "resume", vm).code == 0
        found = lines(says, 4)
    assert [line["type"] for line in found[2:]] == ["vm_paused", "vm_resumed"]
    follow = ("events", "-f", "--after", found[2]["place"], "--type", "vm_resumed", "--json")
    with running(stack, *follow) as says:
        assert lines(says, 1)[0]["event_id"] == found[3]["event_id"]
    for wrong in (
        ("events", "--after", "x"),
        ("events", "-f", "--end", "2026-01-01"),
        ("events", "-f", "--after", "x"),
        ("events", "--type", "."),
    ):
        assert shell(*wrong, "--json").problem["exit_code"] == Exit.USAGE


def test_metrics_are_shown_live_and_as_series(shell: Shell, stack: Path, vm: str) -> None:
    """Samples of the VM as they come, and what the store has of them."""
    with running(stack, "metrics", "web", "-f", "--json") as says:
        found = lines(says, 10)
    assert {line["vm_id"] for line in found} == {vm}
    assert all(line["simulated"] for line in found)
    ats = [datetime.fromisoformat(line["at"]) for line in found]
    assert ats == sorted(set(ats))
    with running(stack, "metrics", "-f") as says:
        eventually(lambda: says.stdout.count("cpu ") >= 3)
    assert vm in says.stdout

    def some() -> bool:
        report = shell("metrics", vm, "--points", "10", "--json").json
        (series,) = report["series"]
        return any(series["values"]["samples"])

    eventually(some)
    table = shell("metrics", "web", "--step-ms", "1000").out
    assert "CPU" in table
    assert vm in table
    for wrong in (("metrics",), ("metrics", vm, "-f", "--start", "2026-01-01"),
                  ("metrics", vm, "--step-ms", "7")):  # fmt: skip
        assert shell(*wrong, "--json").problem["exit_code"] == Exit.USAGE


def test_usage_is_shown_by_windows_and_groups(shell: Shell, vm: str) -> None:
    """As a table, JSON and CSV; the same figures as the whole report."""
    assert shell("vm", "shutdown", vm).code == 0

    def settled() -> bool:
        rows = shell("usage", "--vm", vm, "--json").json["vms"]
        return any(row["settled"] for row in rows)

    eventually(settled)
    (whole,) = shell("usage", "--vm", vm, "--json").json["vms"]
    rows = shell("usage", "--vm", vm, "--by", "minute,vm", "--tz", "UTC", "--json").json["rows"]
    assert sum(row["cpu_ns"] for row in rows) == whole["cpu_ns"] > 0
    assert {row["vm_id"] for row in rows} == {vm}
    done = shell("usage", "--vm", vm, "--by", "label:team", "--csv")
    (line,) = csv.DictReader(io.StringIO(done.out))
    assert (line["label_team"], int(line["cpu_ns"])) == ("a", whole["cpu_ns"])
    today = rows[0]["start"][:10]
    by_day = shell("usage", "--by", "day", "--tz", "Europe/Berlin", "--start", today)
    assert "Usage, Europe/Berlin" in by_day.out
    assert "web" in shell("usage", "--by", "vm", "--by", "day").out
    for wrong in (
        ("usage", "--by", "host"),
        ("usage", "--by", "vm,label:team"),
        ("usage", "--tz", "Mars/Olympus"),
        ("usage", "--csv", "--by", "day", "--start", "tomorrow"),
    ):
        assert shell(*wrong, "--json" if "--csv" not in wrong else "--by=vm").code == Exit.USAGE
