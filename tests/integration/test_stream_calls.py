"""Streams from Python: a replay in one call, audited like the command's; tail and gaps."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from decisec.streams import gaps, replay, tail
from decisec.streams.checkpoint import Progress
from decisec.streams.gaps import Gap, Silence
from runtime.bus import Bus
from runtime.errors import FatalError
from runtime.reading import count_messages, read_stream
from schemas.audit import AuditOutcome
from schemas.codec import encode
from schemas.errors import InvalidIdError
from schemas.events import GapClosed, GapOpened, HostEvent, HostSilent
from schemas.frames import HEADER_REPLAY
from schemas.ids import new_id
from schemas.subjects import METRICS_RAW, host_event
from tests.support.nats import bus_with_streams
from tests.support.replays import Fleet, audit_entries, put_records, send


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[Bus]:
    async with bus_with_streams(tmp_path / "nats") as (_, connected):
        yield connected


async def test_one_call_plans_audits_and_replays(bus: Bus) -> None:
    """Frames of one host from a sequence on, back to the collector, with both audit entries."""
    fleet = Fleet(20)
    await put_records(bus, fleet.records)
    await send(bus, fleet.frames())
    done = await replay(
        bus, "raw", "collector", begin=11, hosts=("h1",), reason="rows lost", actor="ada"
    )
    assert done.complete
    assert (done.plan.first, done.plan.last) == (11, 40)
    assert done.progress.hosts == {"h1": done.progress.messages}
    sent = [m for m in await read_stream(bus, METRICS_RAW) if HEADER_REPLAY in m.headers]
    assert {m.headers[HEADER_REPLAY] for m in sent} == {str(done.plan.replay_id)}
    assert len(sent) == done.progress.messages > 0
    begun, ended = await audit_entries(bus)
    assert (begun.outcome, ended.outcome) == (AuditOutcome.UNDER_WAY, AuditOutcome.SUCCEEDED)
    assert {begun.actor, ended.actor} == {"ada"}
    assert {begun.reason, ended.reason} == {"rows lost"}
    assert ended.details["messages"] == str(done.progress.messages)


async def test_a_dry_run_counts_and_changes_nothing(bus: Bus) -> None:
    """No message, no audit entry, no reason needed."""
    await send(bus, Fleet(20).frames())
    would = await replay(bus, METRICS_RAW, "collector", begin="-1h", dry_run=True)
    assert would.dry_run
    assert (would.progress.messages, would.progress.samples) == (40, 120)
    assert await count_messages(bus, METRICS_RAW) == 40
    assert await audit_entries(bus) == []


async def test_rows_go_to_files_and_functions(bus: Bus, tmp_path: Path) -> None:
    """The same rows; a file that is there already stays as it is."""
    fleet = Fleet(10)
    await put_records(bus, fleet.records)
    await send(bus, fleet.frames())
    rows: list[Any] = []
    vm_id = fleet.records[0].vm_id
    counts: list[int] = []
    await replay(
        bus, "raw", rows.append, vm_ids=(str(vm_id),), told=lambda p: counts.append(p.messages)
    )
    assert [row["vm_id"] for row in rows] == [str(vm_id)] * 10
    assert counts[-1] == 10
    lines = tmp_path / "samples.jsonl"
    await replay(bus, "raw", lines, vm_ids=(vm_id,))
    assert [json.loads(line) for line in lines.read_bytes().splitlines()] == rows
    kept = lines.read_bytes()
    with pytest.raises(FatalError, match="exists"):
        await replay(bus, "raw", str(lines))
    assert lines.read_bytes() == kept
    await replay(bus, "raw", tmp_path / "samples.parquet")
    assert (tmp_path / "samples.parquet").read_bytes()[:4] == b"PAR1"


async def test_a_replay_that_is_cancelled_says_so_in_the_audit(bus: Bus) -> None:
    """What was sent by then is told."""
    await send(bus, Fleet(100).frames())
    first = asyncio.Event()

    def told(progress: Progress) -> None:
        if progress.messages:
            first.set()

    async with asyncio.timeout(30):
        running = asyncio.create_task(
            replay(bus, "raw", "collector", begin=1, speed=0.0001, reason="slowly", told=told)
        )
        await first.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    _, ended = await audit_entries(bus)
    assert ended.outcome == AuditOutcome.INTERRUPTED
    assert 0 < int(ended.details["messages"]) < 200


async def test_what_makes_no_sense_is_refused_by_name(bus: Bus) -> None:
    """Before anything is sent or written."""
    good: dict[str, Any] = {"begin": 1, "reason": "why"}
    for source, into, options, words in (
        ("rows", "collector", good, "source: one of raw"),
        ("enriched", "collector", good, "into: collector takes messages of METRICS_RAW"),
        ("raw", "here.csv", {}, "into: collector, batcher or a file"),
        ("events", "all.parquet", {}, "into: .parquet is for samples"),
        ("rejected", print, {"customers": ("acme",)}, "customer: "),
        ("raw", "collector", {"reason": "why"}, "begin: say from where on"),
        ("raw", "collector", {"begin": 1}, "reason: one line"),
        ("raw", "collector", good | {"begin": "soon"}, "begin: 'soon' is no sequence"),
        ("raw", "collector", good | {"speed": -1.0}, "speed: at least 0"),
    ):
        with pytest.raises(ValueError, match=words):
            await replay(bus, source, into, **options)
    with pytest.raises(InvalidIdError):
        await replay(bus, "raw", "collector", hosts=("*",), **good)
    with pytest.raises(ValueError, match="what: one of frames"):
        async with tail(bus, "everything"):
            pass
    assert await audit_entries(bus) == []


async def test_tail_gives_what_comes_and_gaps_what_is_missing(bus: Bus) -> None:
    """Events as they are published, and the same ones as a ledger."""
    run_id, at = new_id(), datetime.now(UTC)
    hole: dict[str, Any] = {"host_id": "h1", "run_id": run_id, "seq_first": 3, "seq_last": 4}
    events: list[HostEvent] = [
        GapOpened(event_id=new_id(), at=at, **hole),
        GapClosed(event_id=new_id(), at=at + timedelta(seconds=1), **hole),
        HostSilent(event_id=new_id(), at=at, host_id="h2"),
    ]
    async with asyncio.timeout(10), tail(bus, "events") as following:
        for event in events:
            await bus.js.publish(host_event(event), encode(event))
        heard = []
        async for _, record in following:
            heard.append(record.data)
            if len(heard) == len(events):
                break
    assert heard == [encode(event) for event in events]
    found = await gaps(bus)
    assert [type(one) for one in found] == [Gap, Silence]
    (silence,) = await gaps(bus, only_open=True)
    assert silence.host == "h2"
    (gap,) = await gaps(bus, hosts=("h1",))
    assert isinstance(gap, Gap)
    assert (gap.frames, gap.open) == (2, False)
