"""`decisec rejected`, `gaps` and `tail` on a bus, as an operator has them."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from decisec.cli.exits import Exit
from runtime.bus import Bus
from runtime.reading import count_messages
from schemas.codec import encode
from schemas.commands import CreateVm
from schemas.events import (
    GapClosed,
    GapOpened,
    HostFound,
    HostLost,
    HostSilent,
    MeteringAdjusted,
    VmDeleted,
)
from schemas.frames import encode_frame
from schemas.ids import new_id
from schemas.subjects import (
    METRICS_RAW,
    METRICS_REJECTED,
    host_event,
    metrics_enriched,
    vm_command,
    vm_event,
)
from schemas.vms import VmSpec
from tests.support.nats import bus_with_streams
from tests.support.operator import Operator, lines, refuse, until
from tests.support.replays import Fleet, audit_entries
from tests.support.shell import Shell
from tests.support.store import Reading, enriched

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
async def operator(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Operator]:
    folder = tmp_path / "cwd"
    folder.mkdir()
    async with bus_with_streams(tmp_path / "nats") as (server, bus):
        yield Operator(Shell(folder, capfd, monkeypatch), server, bus, folder)


async def tell(bus: Bus, *events: Any) -> None:
    for event in events:
        await bus.js.publish(host_event(event), encode(event))


def hole(kind: Any, host: str, seq: int, run_id: Any) -> Any:
    return kind(
        event_id=new_id(), at=NOW + timedelta(seconds=seq), host_id=host, run_id=run_id,
        seq_first=seq, seq_last=seq + 1,
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


async def test_what_came_late_of_lost_hosts_is_listed(operator: Operator) -> None:
    """Among the gaps, and by itself."""
    adjusted = MeteringAdjusted(
        event_id=new_id(), at=NOW, host_id="h1", lost_at=NOW,
        first_tick=NOW - timedelta(seconds=9), last_tick=NOW - timedelta(seconds=1),
        frames=80, rows=160,
    )  # fmt: skip
    await tell(operator.bus, hole(GapOpened, "h1", 3, new_id()), adjusted)
    assert len((await operator("gaps", "--json")).json["gaps"]) == 2
    (found,) = (await operator("gaps", "--adjustments", "--json")).json["gaps"]
    assert found["kind"] == "adjustment"
    assert (found["frames"], found["rows"], found["lost_at"]) == (80, 160, "2026-01-01T00:00:00Z")
    assert "adjusted" in (await operator("gaps", "--adjustments")).out
    assert (await operator("gaps", "--adjustments", "--host", "h2", "--json")).json["gaps"] == []
    refused = await operator("gaps", "--adjustments", "--open", "--json")
    assert (refused.code, refused.problem["code"]) == (Exit.USAGE, "usage")


async def test_what_was_put_back_and_replayed_is_listed_with_the_reason(
    operator: Operator,
) -> None:
    """Of a replay it is said that it may have changed nothing; a reason is no markup."""
    common: dict[str, Any] = {
        "at": NOW, "host_id": "h1", "lost_at": NOW, "first_tick": NOW, "last_tick": NOW,
        "frames": 3, "rows": 6, "replay_id": "r1",
    }  # fmt: skip
    retried = MeteringAdjusted(
        event_id=new_id(), cause="retry", reason="it [bold]came[/]", **common
    )
    replayed = MeteringAdjusted(
        event_id=new_id(), cause="replay", reason="to be sure", uncertain=True, **common
    )
    await tell(operator.bus, retried, replayed)
    found = (await operator("gaps", "--adjustments", "--json")).json["gaps"]
    assert [(g["cause"], g["uncertain"], g["lost_at"], g["reason"]) for g in found] == [
        ("retry", False, None, "it [bold]came[/]"), ("replay", True, None, "to be sure"),
    ]  # fmt: skip
    shown = (await operator("gaps", "--adjustments")).out
    assert "put back by r1 (it [bold]came[/])" in shown
    assert "may be adjusted" in shown
    assert "changes nothing that is stored already: r1 (to be sure)" in shown


async def test_a_lost_host_is_listed_until_it_is_found(operator: Operator) -> None:
    """Among what is open, and with who declared it."""
    lost = HostLost(
        event_id=new_id(), at=NOW, host_id="h1", reason="no frame for 86400 s",
        requested_by="collector 7", automatic=True,
    )  # fmt: skip
    await tell(operator.bus, lost)
    (still,) = (await operator("gaps", "--open", "--json")).json["gaps"]
    assert (still["kind"], still["host"], still["automatic"]) == ("loss", "h1", True)
    assert "no frame for 86400 s (collector 7)" in (await operator("gaps")).out
    later = NOW + timedelta(hours=1)
    await tell(operator.bus, HostFound(event_id=new_id(), at=later, host_id="h1"))
    assert (await operator("gaps", "--open", "--json")).json["gaps"] == []
    (over,) = (await operator("gaps", "--json")).json["gaps"]
    assert over["found_at"] == "2026-01-01T01:00:00Z"


async def test_losing_and_finding_a_host_is_audited(operator: Operator) -> None:
    """Who, when and why, before and after; a repetition does nothing and says nothing."""
    for _ in range(2):
        assert (await operator("host", "lost", "gone", "--reason", "burnt")).code == 0
    assert (await operator("host", "lost", "gone", "--reason", " ")).code == Exit.USAGE
    for _ in range(2):
        assert (await operator("host", "found", "gone", "--reason", "was it not")).code == 0
    entries = await audit_entries(operator.bus)
    assert [(e.action, e.target, e.reason, e.outcome) for e in entries] == [
        ("host-lost", "gone", "burnt", "under_way"),
        ("host-lost", "gone", "burnt", "succeeded"),
        ("host-found", "gone", "was it not", "under_way"),
        ("host-found", "gone", "was it not", "succeeded"),
    ]
    assert len({e.details["lost_at"] for e in entries}) == 1
    assert all(e.actor and e.customer_id == "operator" for e in entries)


async def test_a_host_of_which_frames_are_on_their_way_is_not_declared_lost(
    operator: Operator,
) -> None:
    """Answers would pass what a batcher that is behind has not stored; --force declares it."""
    await operator.bus.js.pull_subscribe("", durable="batcher", stream="METRICS_ENRICHED")
    await operator.bus.js.publish(metrics_enriched("h1"), b"a frame")
    refused = await operator("host", "lost", "h1", "--reason", "burnt", "--json")
    assert (refused.code, refused.problem["code"]) == (Exit.FAILED, "on_its_way")
    assert (await operator("host", "lost", "h2", "--reason", "burnt")).code == 0
    assert (await operator("host", "lost", "h1", "--reason", "burnt", "--force")).code == 0


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
