"""`decisec flood commands`, as a user starts it."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.load.flood.__main__ import main
from tests.support.dev_stack import Program


def test_a_bad_option_is_refused_before_anything_is_started(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With what to change."""
    with pytest.raises(SystemExit) as ended:
        main(["commands", "--own", "--lives", "0"])
    assert ended.value.code == 2
    assert "--lives: at least 1 and at most 100,000, not 0" in capsys.readouterr().err


def test_a_storm_on_a_stack_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 0, the report on stdout and in the file, progress on stderr, nothing left."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    file = tmp_path / "report.json"
    words = ("flood", "commands", "--own", "--lives", "6", "--up-s", "0.2", "--json", str(file))
    program = Program(*words, cwd=tmp_path)
    try:
        program.until("through http as flood-a, flood-b, flood-c")
        assert program.wait(within_s=90) == 0, program.lines
    finally:
        program.close()
    report = json.loads(program.stdout)
    assert report == json.loads(file.read_bytes())
    assert report["conserved"]
    assert report["lives"]["whole"] == report["bills"]["vms"] == 6
    assert any("lives over: 6 of 6" in line for line in program.lines)
    assert list(tmp_path.glob("decisec-flood-*")) == []


def test_ctrl_c_ends_all_lives_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No new lives, those that go on are deleted, no process is left; exit code 130."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    words = ("flood", "commands", "--own", "--lives", "5000", "--rate", "4", "--up-s", "600")
    program = Program(*words, cwd=tmp_path)
    try:
        program.until("lives begun")
        program.signal(signal.SIGINT)
        assert program.wait(within_s=60) == 130, program.lines
    finally:
        program.close()
    report = json.loads(program.stdout)
    assert report["interrupted"]
    assert 0 < report["lives"]["begun"] < 5000
    assert report["commands"]["boot"]["succeeded"] > 0
    assert report["problems"] == []
    assert (report["orphans"], report["cleared"]) == (0, 0)
    # The stack itself fails where a process of it is left.
    assert list(tmp_path.glob("decisec-flood-*")) == []
