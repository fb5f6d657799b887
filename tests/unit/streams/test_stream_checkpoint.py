"""What an interrupted replay leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from decisec.streams.acts import check_reason
from decisec.streams.checkpoint import (
    Checkpoint,
    Plan,
    Progress,
    read_checkpoint,
    write_checkpoint,
)
from decisec.streams.rejects import spans
from decisec.streams.selection import Selection
from runtime.errors import FatalError
from schemas.ids import new_id

PLAN = Plan(
    replay_id=new_id(), source="METRICS_RAW", target="collector", first=3, last=9, speed=2.0,
    selection=Selection(hosts=("h1",), vm_ids=(new_id(),)), reason="lost",
)  # fmt: skip


def test_a_checkpoint_reads_back(tmp_path: Path) -> None:
    """Plan and progress, the later one instead of the former."""
    path = tmp_path / "c.json"
    for cursor in (4, 7):
        left = Checkpoint(plan=PLAN, progress=Progress(cursor=cursor, hosts={"h1": cursor}))
        write_checkpoint(path, left)
    assert read_checkpoint(path) == left
    assert list(tmp_path.iterdir()) == [path]
    assert PLAN.words().startswith("METRICS_RAW 3-9 to collector, host h1, VM ")


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"plan": 1, "progress": {}}', None])
def test_what_is_no_checkpoint_is_told(tmp_path: Path, content: bytes | None) -> None:
    """The path is named; so it is where a file cannot be written."""
    path = tmp_path / "c.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FatalError, match=r"c\.json"):
        read_checkpoint(path)
    with pytest.raises(FatalError, match="checkpoint"):
        write_checkpoint(tmp_path / "away" / "c", Checkpoint(plan=PLAN, progress=Progress()))


@pytest.mark.parametrize("reason", ["", "  ", "two\nlines", "x" * 201, "\x1b[31m"])
def test_a_reason_is_one_line(reason: str) -> None:
    """It stands in the audit for people to read."""
    with pytest.raises(ValueError, match="one line"):
        check_reason(reason)


def test_sequences_are_told_in_few_words() -> None:
    """Neighbours together, and never too many."""
    assert spans([5, 3, 4, 9, 9]) == "3-5, 9"
    assert spans([]) == ""
    assert len(spans(range(0, 10_000, 2))) < 1100
