"""`decisec replay` on a bus, as an operator has it."""

from __future__ import annotations

import asyncio
import signal
from base64 import b64decode
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from decisec.cli.exits import Exit
from decisec.streams.checkpoint import Checkpoint, Plan, Progress, write_checkpoint
from runtime.reading import count_messages
from schemas.codec import encode
from schemas.events import VmDeleted
from schemas.ids import new_id
from schemas.subjects import (
    METRICS_RAW,
    vm_event,
)
from tests.support.dev_stack import Program
from tests.support.nats import bus_with_streams
from tests.support.operator import Operator, lines, refuse, until
from tests.support.replays import Fleet, audit_entries, put_records, send
from tests.support.shell import Shell

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
async def operator(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Operator]:
    folder = tmp_path / "cwd"
    folder.mkdir()
    async with bus_with_streams(tmp_path / "nats") as (server, bus):
        yield Operator(Shell(folder, capfd, monkeypatch), server, bus, folder)


async def test_a_dry_run_says_what_would_be_done(operator: Operator) -> None:
    """Counts, range and hosts; nothing is sent, nothing audited, no reason asked for."""
    await send(operator.bus, Fleet(10).frames())
    done = await operator("replay", "raw", "--into", "collector", "--from", "3", "--dry-run")
    assert done.code == 0, done
    assert "would replay METRICS_RAW 3-20 to collector" in done.out
    assert "18 messages, 54 samples" in done.out
    assert "hosts: h1 9, h2 9" in done.out
    some = await operator("replay", "raw", "--host", "h2", "--to", "10", "--dry-run", "--json")
    would = some.json["would"]
    assert (would["messages"], would["hosts"], would["cursor"]) == (5, {"h2": 5}, 10)
    assert await count_messages(operator.bus, METRICS_RAW) == 20
    assert await audit_entries(operator.bus) == []
    assert list(operator.folder.iterdir()) == []


async def test_a_replay_is_audited_and_leaves_no_checkpoint(operator: Operator) -> None:
    """Who, why and how much; the new messages have the ids of this replay."""
    await send(operator.bus, Fleet(10).frames())
    done = await operator(
        *("replay", "raw", "--into", "collector", "--from", "1", "--reason", "lost rows", "--json")
    )
    assert done.json["done"]["messages"] == 20
    replay_id = done.json["plan"]["replay_id"]
    assert await count_messages(operator.bus, METRICS_RAW) == 40
    last = await operator.bus.js.get_msg(METRICS_RAW, 40)
    assert last.headers is not None
    assert last.headers["Nats-Msg-Id"] == f"replay:{replay_id}:20"
    begun, ended = await audit_entries(operator.bus)
    assert (begun.action, begun.reason, begun.target) == (
        "replay", "lost rows", "METRICS_RAW 1-20 to collector",
    )  # fmt: skip
    await operator.bus.js.get_last_msg("AUDIT", "audit.operator.replay")
    assert ended.outcome == "succeeded"
    assert ended.details["messages"] == "20"
    assert ended.details["act_id"] == begun.details["act_id"] == replay_id
    assert list(operator.folder.iterdir()) == []


async def test_samples_go_into_files_and_to_the_terminal(operator: Operator) -> None:
    """A row each, the same in all of them; a file that is there is not overwritten."""
    fleet = Fleet(5)
    await put_records(operator.bus, fleet.records)
    await send(operator.bus, fleet.frames())
    command = ("replay", "raw", "--customer", "globex")
    for name in ("a.jsonl", "a.parquet"):
        assert (await operator(*command, "--into", name)).code == 0
        again = await operator(*command, "--into", name, "--json")
        assert again.code == Exit.FAILED
        assert "File exists" in again.problem["detail"]
    written = lines((operator.folder / "a.jsonl").read_text())
    owned = {str(r.vm_id) for r in fleet.records if r.customer_id == "globex"}
    assert {row["vm_id"] for row in written} == owned
    assert len(written) == 10
    table = pq.read_table(operator.folder / "a.parquet").to_pylist()
    assert [{k: v for k, v in row.items() if v is not None} for row in table] == written
    none = await operator("replay", "raw", "--customer", "nobody", "--into", "none.parquet")
    assert none.code == 0, none
    shown = await operator(*command, "--json")
    assert lines(shown.out) == written
    people = (await operator(*command)).out.splitlines()
    assert len(people) == 10
    assert all("running" in line for line in people)
    assert sorted(p.name for p in operator.folder.iterdir()) == ["a.jsonl", "a.parquet"]


async def test_events_and_rejects_are_replayed_into_a_file(operator: Operator) -> None:
    """Filtered by what they say themselves."""
    vm_id = new_id()
    for customer in ("acme", "globex"):
        event = VmDeleted(
            event_id=new_id(), at=NOW, customer_id=customer, vm_id=vm_id, host_id="h1"
        )
        await operator.bus.js.publish(vm_event(event), encode(event))
    await refuse(operator.bus, "not_msgpack", b"\xc1")
    done = await operator("replay", "events", "--customer", "acme", "--into", "e.jsonl")
    assert done.code == 0, done
    (row,) = lines((operator.folder / "e.jsonl").read_text())
    assert (row["type"], row["customer_id"], row["sequence"]) == ("vm_deleted", "acme", 1)
    assert "vm_deleted" in (await operator("replay", "events")).out
    (row,) = lines((await operator("replay", "rejected", "--json")).out)
    assert (row["reason"], row["rows"], row["samples"]) == ("not_msgpack", None, [])
    assert b64decode(row["data_base64"]) == b"\xc1"
    assert "no frame; first VM [bold]x [/]" in (await operator("replay", "rejected")).out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["replay"], "raw, enriched"),
        (["replay", "VM_COMMANDS"], "raw, enriched"),
        (["replay", "raw", "--into", "batcher", "--from", "1", "--reason", "x"], "batcher takes"),
        (["replay", "raw", "--into", "collector", "--reason", "x"], "--from"),
        (["replay", "raw", "--into", "collector", "--from", "1"], "--reason"),
        (["replay", "raw", "--into", "collector", "--from", "1", "--reason", "\x1b"], "--reason"),
        (["replay", "raw", "--into", "x.csv"], ".jsonl"),
        (["replay", "events", "--into", "x.parquet"], ".jsonl"),
        (["replay", "rejected", "--customer", "acme"], "--customer"),
        (["replay", "raw", "--from", "yesterday"], "--from"),
        (["replay", "raw", "--speed", "fast"], "--speed"),
        (["replay", "raw", "--speed", "-1x"], "--speed"),
        (["replay", "raw", "--host", "h.*"], "'h.*'"),
        (["replay", "raw", "--vm", "web"], "UUID"),
        (["replay", "raw", "--resume", "x"], "--resume"),
        (["rejected", "retry", "--reason", "x"], "sequences"),
        (["rejected", "retry", "1", "--host", "h1", "--reason", "x"], "sequences"),
        (["rejected", "discard", "1", "--reason", "x"], "--yes"),
        (["rejected", "discard", "1", "--yes"], "--reason"),
        (["rejected", "ls", "--reason-is", "unknown"], "unknown_vm"),
    ],
)
async def test_what_makes_no_sense_is_refused(
    operator: Operator, arguments: list[str], word: str
) -> None:
    """Before anything is done, and with the option's name."""
    await refuse(operator.bus, "not_msgpack", b"\xc1")
    done = await operator(*arguments, "--json")
    assert done.code == Exit.USAGE, done
    assert word in done.problem["detail"]
    assert await audit_entries(operator.bus) == []
    assert list(operator.folder.iterdir()) == []


def interrupt(running: Program) -> str:
    """Ctrl-C, as soon as some of it is done; what it says about going on."""
    running.signal(signal.SIGINT)
    word = running.until("--resume", within_s=30)
    assert running.wait() == Exit.INTERRUPTED
    return word.rpartition(" ")[2]


async def test_an_interrupted_replay_is_resumed(operator: Operator) -> None:
    """Into a file: every line once. To the collector: audited as interrupted, then as done."""
    await send(operator.bus, Fleet(100).frames())
    file = operator.folder / "x.jsonl"
    with operator.program("replay", "raw", "--into", "x.jsonl", "--speed", "0.01x") as running:
        await asyncio.to_thread(until, lambda: file.exists() and file.stat().st_size > 0)
        checkpoint = await asyncio.to_thread(interrupt, running)
    before = lines(file.read_text())
    assert 0 < len(before) < 600
    with file.open("ab") as opened:
        opened.write(b'{"sequence": 17')  # a line that the checkpoint does not know of
    assert (await operator("replay", "--resume", checkpoint, "--speed", "max")).code == 0
    rows = lines(file.read_text())
    assert [row["sequence"] for row in rows] == [n for n in range(1, 201) for _ in range(3)]
    assert not (operator.folder / checkpoint).exists()
    arguments = ("--from", "1", "--reason", "why", "--speed", "0.01x")
    with operator.program("replay", "raw", "--into", "collector", *arguments) as running:
        async with asyncio.timeout(30):
            while await count_messages(operator.bus, METRICS_RAW) == 200:
                await asyncio.sleep(0.02)
        checkpoint = await asyncio.to_thread(interrupt, running)
    done = await operator("replay", "--resume", checkpoint, "--speed", "max", "--json")
    assert done.json["done"]["messages"] == 200
    assert await count_messages(operator.bus, METRICS_RAW) == 400
    entries = await audit_entries(operator.bus)
    assert [e.outcome for e in entries] == ["under_way", "interrupted", "under_way", "succeeded"]
    assert {e.details["replay_id"] for e in entries} == {done.json["plan"]["replay_id"]}
    assert [p.name for p in operator.folder.iterdir()] == ["x.jsonl"]


@pytest.mark.chaos
async def test_a_replay_that_is_killed_is_resumed(operator: Operator) -> None:
    """It had no time to say anything: its checkpoint is there, and every frame is sent once."""
    await send(operator.bus, Fleet(100).frames())
    arguments = ("--from", "1", "--reason", "why", "--speed", "0.01x")
    with operator.program("replay", "raw", "--into", "collector", *arguments) as running:
        async with asyncio.timeout(30):
            while await count_messages(operator.bus, METRICS_RAW) < 210:
                await asyncio.sleep(0.02)
        running.signal(signal.SIGKILL)
        assert await asyncio.to_thread(running.wait) == -signal.SIGKILL
    (checkpoint,) = operator.folder.glob("decisec-replay-*.json")
    done = await operator("replay", "--resume", checkpoint.name, "--speed", "max")
    assert done.code == 0, done
    assert await count_messages(operator.bus, METRICS_RAW) == 400
    entries = await audit_entries(operator.bus)
    assert [e.outcome for e in entries] == ["under_way", "under_way", "succeeded"]
    assert list(operator.folder.iterdir()) == []


async def test_nothing_is_begun_where_no_checkpoint_can_be_written(operator: Operator) -> None:
    """The file is named, no frame is sent, and there is nothing to audit."""
    await send(operator.bus, Fleet(5).frames())
    plan = Plan(
        replay_id=new_id(), source=METRICS_RAW, target="collector", first=1, last=10, reason="why"
    )
    path = operator.folder / "c.json"
    write_checkpoint(path, Checkpoint(plan=plan, progress=Progress()))
    path.with_name("c.json.new").mkdir()
    done = await operator("replay", "--resume", "c.json", "--json")
    assert done.code == Exit.FAILED
    assert "the checkpoint c.json cannot be written" in done.problem["detail"]
    assert await count_messages(operator.bus, METRICS_RAW) == 10
    assert await audit_entries(operator.bus) == []
