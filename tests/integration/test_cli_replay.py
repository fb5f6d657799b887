"""`decisec replay`, `rejected`, `gaps` and `tail` on a bus, as an operator has them."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from base64 import b64decode
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from decisec.cli.exits import Exit
from decisec.streams.checkpoint import Checkpoint, Plan, Progress, write_checkpoint
from runtime.bus import Bus
from runtime.publisher import Publisher
from runtime.reading import count_messages
from schemas.codec import encode
from schemas.commands import CreateVm
from schemas.events import GapClosed, GapOpened, HostSilent, VmDeleted
from schemas.frames import HEADER_DETAIL, HEADER_REASON, encode_frame
from schemas.ids import new_id
from schemas.subjects import (
    METRICS_RAW,
    METRICS_REJECTED,
    host_event,
    metrics_enriched,
    metrics_rejected,
    vm_command,
    vm_event,
)
from schemas.vms import VmSpec
from tests.support.dev_stack import Program, program
from tests.support.nats import NatsServer, bus_with_streams
from tests.support.replays import Fleet, audit_entries, put_records, send
from tests.support.shell import Done, Shell
from tests.support.store import Reading, enriched

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Operator:
    """Runs commands against a server while the test's own connection stands."""

    def __init__(self, shell: Shell, server: NatsServer, bus: Bus, folder: Path) -> None:
        self.bus = bus
        self.folder = folder
        self.url = server.url
        self._shell = shell

    async def __call__(self, *arguments: str) -> Done:
        """One command line."""
        return await asyncio.to_thread(self._shell, *arguments, DECISEC_NATS_URL=self.url)

    def program(self, *arguments: str) -> Any:
        """The same as a process of its own, that can be signalled."""
        return program(
            *arguments, "--nats-url", self.url, cwd=self.folder, state_dir=self.folder / "none"
        )


@pytest.fixture
async def operator(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Operator]:
    folder = tmp_path / "cwd"
    folder.mkdir()
    async with bus_with_streams(tmp_path / "nats") as (server, bus):
        yield Operator(Shell(folder, capfd, monkeypatch), server, bus, folder)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


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
    assert "no frame" in (await operator("replay", "rejected")).out


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


def until(condition: Callable[[], bool], within_s: float = 30.0) -> None:
    give_up = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


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


async def refuse(bus: Bus, reason: str, data: bytes, host: str = "h1") -> None:
    await Publisher(bus).publish(
        metrics_rejected(reason, host), data, msg_id=str(new_id()),
        headers={HEADER_REASON: reason, HEADER_DETAIL: "first VM [bold]x"},
    )  # fmt: skip


async def test_rejects_are_listed_shown_retried_and_discarded(operator: Operator) -> None:
    """By host and reason or each; both acts need a reason and a yes, and stand in the audit."""
    frame = Fleet(1).by_host["h1"][0]
    for reason, data, host in (
        ("unknown_vm", encode_frame(frame), "h1"),
        ("unknown_vm", encode_frame(frame), "h1"),
        ("not_msgpack", b"\xc1", "h2"),
    ):
        await refuse(operator.bus, reason, data, host)
    groups = (await operator("rejected", "ls", "--json")).json["groups"]
    assert [(g["host"], g["reason"], g["messages"], g["rows"]) for g in groups] == [
        ("h1", "unknown_vm", 2, 6), ("h2", "not_msgpack", 1, 0),
    ]  # fmt: skip
    assert "unknown_vm" in (await operator("rejected", "ls")).out
    each = (await operator("rejected", "ls", "--each", "--host", "h1", "--json")).json["rejected"]
    assert [r["sequence"] for r in each] == [1, 2]
    assert "[bold]x" in (await operator("rejected", "ls", "--each")).out
    seen = (await operator("rejected", "show", "1", "--json")).json
    assert (seen["reason"], len(seen["samples"])) == ("unknown_vm", 3)
    assert seen["samples"][0]["vm_id"] in (await operator("rejected", "show", "1")).out
    gone = await operator("rejected", "show", "9", "--json")
    assert (gone.code, gone.problem["code"]) == (Exit.NOT_FOUND, "not_found")
    acts = ("--reason", "they are known now", "--yes")
    done = await operator("rejected", "retry", "--reason-is", "unknown_vm", "--host", "h1", *acts)
    assert (done.code, done.out) == (0, "2 rejects sent once more\n")
    assert await count_messages(operator.bus, METRICS_RAW) == 2
    none = await operator("rejected", "retry", "--reason-is", "unknown_vm", *acts, "--json")
    assert none.json["done"] == []
    left = await operator("rejected", "discard", "3", "4", *acts)
    assert (left.code, left.out) == (
        Exit.FAILED, "1 reject thrown away\n  4 was left: there is none\n",
    )  # fmt: skip
    assert await count_messages(operator.bus, METRICS_REJECTED) == 0
    entries = await audit_entries(operator.bus)
    assert [e.action for e in entries] == ["rejected-retry"] * 2 + ["rejected-discard"] * 2
    assert {e.reason for e in entries} == {"they are known now"}


async def tell(bus: Bus, *events: Any) -> None:
    for event in events:
        await bus.js.publish(host_event(event), encode(event))


def hole(kind: Any, host: str, seq: int, run_id: Any) -> Any:
    return kind(
        event_id=new_id(), at=NOW + timedelta(seconds=seq), host_id=host, run_id=run_id,
        seq_first=seq, seq_last=seq + 1,
    )  # fmt: skip


async def test_gaps_are_listed_and_followed(operator: Operator) -> None:
    """Open ones, those of a host, and what comes while one looks on."""
    run = new_id()
    opened, closed = hole(GapOpened, "h1", 3, run), hole(GapClosed, "h1", 3, run)
    missing = hole(GapOpened, "h2", 7, run)
    quiet = HostSilent(event_id=new_id(), at=NOW + timedelta(seconds=60), host_id="h2")
    await tell(operator.bus, opened, closed, missing, quiet)
    found = (await operator("gaps", "--json")).json["gaps"]
    assert [(g["kind"], g["host"]) for g in found] == [
        ("gap", "h1"), ("gap", "h2"), ("silence", "h2"),
    ]  # fmt: skip
    assert found[0]["closed_at"] == "2026-01-01T00:00:03Z"
    still = (await operator("gaps", "--open", "--json")).json["gaps"]
    assert [(g["kind"], g["host"]) for g in still] == [("gap", "h2"), ("silence", "h2")]
    assert len((await operator("gaps", "--host", "h1", "--json")).json["gaps"]) == 1
    assert "seq 7-8" in (await operator("gaps")).out
    with operator.program("gaps", "--follow", "--open", "--host", "h2", "--json") as running:
        await asyncio.to_thread(running.until, "following")
        later = hole(GapClosed, "h2", 7, run)
        await tell(operator.bus, hole(GapClosed, "h1", 9, run), later)
        await asyncio.to_thread(until, lambda: running.stdout.count("\n") == 3)
        running.signal(signal.SIGINT)
        assert await asyncio.to_thread(running.wait) == Exit.INTERRUPTED
    assert [g["closed_at"] for g in lines(running.stdout) if g["kind"] == "gap"] == [
        None, "2026-01-01T00:00:07Z",
    ]  # fmt: skip


@pytest.mark.parametrize("as_json", [False, True])
async def test_what_goes_by_is_shown_until_there_is_enough(
    operator: Operator, as_json: bool
) -> None:
    """Frames of one customer only; rubbish between them is told on stderr."""
    owned = [enriched([Reading(new_id(), 1000, customer=c)]) for c in ("acme", "globex", "acme")]
    json_option = ("--json",) if as_json else ()
    command = ("tail", "frames", "--customer", "acme", "--count", "2", *json_option)
    with operator.program(*command) as running:
        await asyncio.to_thread(running.until, "following")
        await operator.bus.js.publish("metrics.enriched.h1", b"\xc1")
        for frame in owned:
            await operator.bus.js.publish(metrics_enriched("h1"), encode_frame(frame))
        assert await asyncio.to_thread(running.wait) == Exit.OK
    assert any("not shown: not_msgpack" in line for line in running.lines)
    shown = running.stdout.splitlines()
    assert len(shown) == 2
    if as_json:
        assert [row["customer_id"] for row in lines(running.stdout)] == ["acme", "acme"]
    else:
        assert all("acme 1" in line for line in shown)


async def test_events_and_rejects_are_shown_as_they_come(operator: Operator) -> None:
    """Of VMs and of hosts; filtered by host."""
    gone = VmDeleted(event_id=new_id(), at=NOW, customer_id="acme", vm_id=new_id(), host_id="h1")
    with (
        operator.program("tail", "events", "--host", "h1", "--count", "2") as events,
        operator.program("tail", "rejected", "--host", "h1", "--count", "1") as refused,
    ):
        for running in (events, refused):
            await asyncio.to_thread(running.until, "following")
        await tell(operator.bus, hole(GapOpened, "h2", 1, new_id()))
        await tell(operator.bus, hole(GapOpened, "h1", 1, new_id()))
        await operator.bus.js.publish(vm_event(gone), encode(gone))
        await refuse(operator.bus, "not_msgpack", b"\xc1", "h2")
        await refuse(operator.bus, "not_msgpack", b"\xc1", "h1")
        for running in (events, refused):
            assert await asyncio.to_thread(running.wait) == Exit.OK
    kinds = sorted(line.split()[2] for line in events.stdout.splitlines())
    assert kinds == ["gap_opened", "vm_deleted"]
    assert "h1 not_msgpack: no frame; first VM [bold]x" in refused.stdout


async def test_commands_are_shown_without_secrets(operator: Operator) -> None:
    """Of one VM; the names of its metadata are no secret."""
    commands = [
        CreateVm(
            command_id=new_id(), customer_id="acme", vm_id=new_id(), host_id="h1", issued_at=NOW,
            deadline=NOW, spec=VmSpec(image="tiny", metadata={"password": "hunter2"}),
        )
        for _ in range(2)
    ]  # fmt: skip
    wanted = ("--vm", str(commands[1].vm_id))
    with operator.program("tail", "commands", *wanted, "--count", "1") as running:
        await asyncio.to_thread(running.until, "following")
        for command in commands:
            await operator.bus.js.publish(vm_command(command), encode(command))
        assert await asyncio.to_thread(running.wait) == Exit.OK
    (line,) = running.stdout.splitlines()
    assert f"CreateVm h1 acme {commands[1].vm_id}" in line
    assert "image: tiny" in line
    assert "hunter2" not in line


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
