"""`decisec streams ls`: what is declared, without a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.streams import declared
from tests.support.shell import Shell


def test_what_is_declared_is_listed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With subjects, ages and sizes, for people and for programs."""
    decisec = Shell(tmp_path, capfd, monkeypatch)
    listed = decisec("streams", "ls", "--partitions", "16", "--json").json
    partitions = {stream["name"]: stream["partitions"] for stream in listed["streams"]}
    assert partitions["METRICS_RAW"] == 16
    assert {bucket["name"] for bucket in listed["buckets"]} == {b.name for b in declared().bucket}
    rows = decisec("streams", "ls").out.splitlines()
    events = next(row for row in rows if "VM_EVENTS" in row)
    assert [cell.strip() for cell in events.split("│")[2:5]] == ["vm.evt.>", "30 d", "1.0 GiB"]
    hosts = next(row for row in rows if "$KV.hosts.>" in row)
    assert [cell.strip() for cell in hosts.split("│")[3:5]] == ["30 s", "-"]
