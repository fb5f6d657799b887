"""Rows and lines of messages: decoded, and harmless on a terminal."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from decisec.cli.stream_lines import clock, frame_line, line, message_line, reject_line, sample_line
from decisec.streams.columns import parquet
from decisec.streams.decoding import (
    enriched_frame,
    message_row,
    raw_frame,
    sample_rows,
    when_ms,
)
from decisec.streams.reading import Record
from decisec.streams.rejects import grouped, reject_of, samples_in
from decisec.streams.targets import Item, rows_of
from runtime.errors import FatalError
from schemas.codec import encode
from schemas.commands import CreateVm
from schemas.errors import MalformedMessageError
from schemas.events import VmDeleted, VmStopped
from schemas.frames import HEADER_DETAIL, HEADER_REASON, HEADER_REPLAY, encode_frame
from schemas.ids import new_id
from schemas.subjects import METRICS_ENRICHED, METRICS_RAW, VM_COMMANDS, VM_EVENTS
from schemas.vms import METERS, Counters, ExitReason, VmSpec
from tests.support.frames import HOST, Row, frame
from tests.support.store import Reading, enriched

VM = new_id()
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def record(subject: str, data: bytes, sequence: int = 5, **headers: str) -> Record:
    return Record(sequence, NOW, subject, data, headers)


def test_a_sample_has_every_column() -> None:
    """Raw: the host's own numbers. Enriched: whose as well."""
    raw = frame([Row(VM, dict.fromkeys(METERS, 2**63 + 7))], run_id=new_id())
    (row,) = sample_rows(raw)
    assert all(row[meter] == 2**63 + 7 for meter in METERS)
    assert (row["vm_id"], row["state"], row["tick"]) == (
        str(VM), "running", "2025-10-09T08:53:20.000+00:00",
    )  # fmt: skip
    owned = enriched([Reading(VM, 1000, customer="acme")], run_id=new_id())
    (row,) = sample_rows(owned)
    assert (row["customer_id"], row["vcpus"], row["region"]) == ("acme", 1, "local")
    assert f"h1 acme {VM}#1 running" in sample_line(row)
    assert ": 1 VM (acme 1)" in frame_line(owned, "")
    assert when_ms(2**62) == str(2**62)


def test_a_frame_on_another_hosts_subject_is_none() -> None:
    """Neither raw nor enriched; nor what is no frame at all."""
    raw = encode_frame(frame([], run_id=new_id()))
    assert raw_frame(record(f"metrics.raw.{HOST}", raw)).host == HOST
    for subject, data in (("metrics.raw.other", raw), ("metrics.raw.A b", raw), ("x.h", b"\xc1")):
        with pytest.raises(MalformedMessageError):
            raw_frame(record(subject, data))
        with pytest.raises(MalformedMessageError):
            enriched_frame(record(subject, data))


def test_events_and_commands_are_one_line() -> None:
    """Who, whose, what; of metadata the names only."""
    shared: dict[str, Any] = {"customer_id": "acme", "vm_id": VM, "host_id": "h1"}
    stopped = VmStopped(
        event_id=new_id(), at=NOW, reason=ExitReason.KILLED, final_counters=Counters(cpu_ns=5),
        **shared,
    )  # fmt: skip
    row = message_row(VM_EVENTS, record("vm.evt", encode(stopped)))
    words = message_line(row)
    assert words.startswith(f"2026-01-01 00:00:00.000 vm_stopped h1 acme {VM} ")
    assert "reason=killed final_counters={cpu_ns: 5}" in words
    deleted = VmDeleted(event_id=new_id(), at=NOW, **shared)
    row = message_row(VM_EVENTS, record("vm.evt", encode(deleted)))
    assert message_line(row).endswith(f"vm_deleted h1 acme {VM} incarnation=0")
    create = CreateVm(
        command_id=new_id(), issued_at=NOW, deadline=NOW + timedelta(seconds=9),
        spec=VmSpec(image="tiny", metadata={"password": "hunter2"}), **shared,
    )  # fmt: skip
    row = message_row(VM_COMMANDS, record("vm.cmd", encode(create)))
    assert row["spec"]["metadata"] == {"password": ""}
    assert "hunter2" not in message_line(row)
    with pytest.raises(ValueError, match=METRICS_RAW):
        message_row(METRICS_RAW, record("metrics.raw.h", b""))


def test_a_reject_tells_why_and_holds_its_rows() -> None:
    """Whatever its words are; what is no frame has no rows."""
    bad = encode_frame(frame([Row(VM)], run_id=new_id()))
    headers = {HEADER_REASON: "unknown_vm", HEADER_DETAIL: "evil \x1b]0;title\x07\nwords"}
    first = record("metrics.rejected.unknown_vm.h1", bad, 1, **headers)
    second = record("metrics.rejected.unknown_vm.h1", bad, 2, **headers, **{HEADER_REPLAY: "r1"})
    other = record("metrics.rejected.not_msgpack.h1", b"\xc1", 3, **{HEADER_REASON: "not_msgpack"})
    found = [reject_of(r) for r in (first, second, other)]
    assert [(r.host, r.reason, r.rows, r.replay) for r in found] == [
        ("h1", "unknown_vm", 1, ""), ("h1", "unknown_vm", 1, "r1"), ("h1", "not_msgpack", None, ""),
    ]  # fmt: skip
    assert [row["vm_id"] for row in samples_in(first)] == [str(VM)]
    assert samples_in(other) == []
    assert "\x1b" not in reject_line(found[0])
    assert "\n" not in reject_line(found[0])
    groups = grouped(found)
    assert [(g.reason, g.messages, g.rows) for g in groups] == [
        ("not_msgpack", 1, 0), ("unknown_vm", 2, 2),
    ]  # fmt: skip
    assert "no frame" in line({**_plain(found[2]), "stored_at": NOW.isoformat()})


def _plain(reject: Any) -> dict[str, Any]:
    return {name: getattr(reject, name) for name in reject.__struct_fields__}


def test_a_time_that_is_none_stays_as_it_is() -> None:
    """Nothing is raised while somebody looks on."""
    assert clock("") == "-"
    assert clock("99999999999999999999") == "99999999999999999999"


async def test_columns_hold_what_rows_hold(tmp_path: Path) -> None:
    """Of an enriched frame, a final sample and one of a replay included."""
    frames = [
        enriched(
            [
                Reading(vm_id, 1000 + 100 * place, flags=2, customer=customer, pool=f"p{place}",
                        counters=dict.fromkeys(METERS, 2**63 + place))
                for vm_id, customer in ((VM, "acme"), (new_id(), "globex"))
            ],
            seq=place,
        )
        for place in range(3)
    ]  # fmt: skip
    items = [
        Item(record("metrics.enriched.h1", b"", place, **{HEADER_REPLAY: "r1"} if place else {}), f)
        for place, f in enumerate(frames)
    ]
    with parquet(tmp_path / "x.parquet") as target:
        await target.take(items[:2])
        await target.take(items[2:])
    expected = [row for item in items for row in rows_of(METRICS_ENRICHED, item)]
    found = pq.read_table(tmp_path / "x.parquet").to_pylist()
    assert [{k: v for k, v in row.items() if v is not None} for row in found] == expected
    assert expected[0]["final"]


@pytest.mark.parametrize("name", ["x.parquet", "away/x.parquet"])
async def test_a_parquet_file_is_whole_or_not_there(tmp_path: Path, name: str) -> None:
    """An interrupted one leaves nothing, and one that is there is not touched."""
    item = Item(record("metrics.raw.h", b""), frame([Row(VM)], run_id=new_id()))

    async def fail() -> None:
        with parquet(tmp_path / name) as target:
            await target.take([item])
            raise RuntimeError("interrupted")

    with pytest.raises((RuntimeError, FatalError)):
        await fail()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "x.parquet").write_text("mine")
    with pytest.raises(FatalError):
        await fail_on(tmp_path / "x.parquet", item)
    assert (tmp_path / "x.parquet").read_text() == "mine"


async def fail_on(path: Path, item: Item) -> None:
    with parquet(path) as target:
        await target.take([item])
