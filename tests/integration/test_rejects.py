"""Rejects are sent once more to where they came from, or thrown away; both are audited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from decisec.streams.acts import audited
from decisec.streams.reading import record_at, resolve
from decisec.streams.rejects import Reject, discard, reject_of, rejects, retry
from decisec.streams.selection import Selection
from runtime.bus import Bus
from runtime.errors import TransientError
from runtime.publisher import Publisher
from runtime.reading import count_messages, read_stream
from schemas.frames import (
    HEADER_DETAIL,
    HEADER_REASON,
    HEADER_REPLAY,
    RejectReason,
    decode_frame,
    encode_frame,
)
from schemas.ids import new_id
from schemas.replays import HEADER_REPLAY_REASON, HEADER_RETRY, retry_of
from schemas.subjects import (
    METRICS_ENRICHED,
    METRICS_RAW,
    METRICS_REJECTED,
    host_of_metrics,
    metrics_rejected,
)
from tests.support.collector import all_collected
from tests.support.frames import Row, frame
from tests.support.nats import bus_with_streams
from tests.support.replays import (
    Fleet,
    adjustments,
    audit_entries,
    billed,
    put_records,
    send,
    stored_frames,
)
from tests.support.stack import metering_stack
from tests.support.store import Reading, enriched

VM = new_id()


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[Bus]:
    async with bus_with_streams(tmp_path / "nats") as (_, connection):
        yield connection


async def refuse(bus: Bus, reason: str, data: bytes, *, host: str = "h1", detail: str = "") -> None:
    await Publisher(bus).publish(
        metrics_rejected(reason, host), data, msg_id=str(new_id()),
        headers={HEADER_REASON: reason, HEADER_DETAIL: detail or "-", "Decisec-Other": "claim"},
    )  # fmt: skip


async def listed(bus: Bus, selection: Selection | None = None, reason: str = "") -> list[Reject]:
    stretch = await resolve(bus, METRICS_REJECTED, None, None)
    found = rejects(bus, stretch, selection or Selection(), reason)
    return [reject_of(record) async for record in found]


async def test_a_reject_goes_back_where_it_came_from(bus: Bus) -> None:
    """Raw bytes as raw, what the store refused as enriched; neither is a reject any more."""
    raw = encode_frame(frame([Row(VM)], run_id=new_id(), host="h1"))
    owned = encode_frame(enriched([Reading(VM, 1000)], host="h2"))
    await refuse(bus, RejectReason.UNKNOWN_VM, raw)
    await refuse(bus, RejectReason.STORE_REFUSED, owned, host="h2")
    await refuse(bus, RejectReason.NOT_MSGPACK, b"\xc1", host="h2")
    assert [r.reason for r in await listed(bus, Selection(hosts=("h2",)))] == [
        "store_refused", "not_msgpack",
    ]  # fmt: skip
    assert [r.sequence for r in await listed(bus, reason="unknown_vm")] == [1]
    done = await retry(bus, [1, 2, 9], actor="ann@desk", reason="records are there now")
    assert (done.done, done.left) == ([1, 2], {9: "there is none"})
    for stream, data in ((METRICS_RAW, raw), (METRICS_ENRICHED, owned)):
        (message,) = await read_stream(bus, stream)
        assert message.data == data
        assert message.headers[HEADER_REPLAY] == str(done.act_id)
        assert {h for h in message.headers if h.startswith("Decisec-")} == {
            HEADER_REPLAY, HEADER_RETRY, HEADER_REPLAY_REASON,
        }  # fmt: skip
        assert retry_of(message.headers) == (str(done.act_id), "records are there now", False)
        assert host_of_metrics(message.subject) == ("h1" if stream == METRICS_RAW else "h2")
    assert [r.reason for r in await listed(bus)] == ["not_msgpack"]
    begun, ended = await audit_entries(bus)
    assert (begun.action, begun.actor, begun.customer_id) == (
        "rejected-retry", "ann@desk", "operator",
    )  # fmt: skip
    assert (begun.outcome, ended.outcome) == ("under_way", "succeeded")
    assert begun.details == {"act_id": str(done.act_id), "phase": "begun", "sequences": "1-2, 9"}
    assert ended.details["phase"] == "ended"
    assert ended.details["done"] == "1-2"
    assert ended.details["kinds"] == "1 store_refused h2, 1 unknown_vm h1"
    assert {e.reason for e in (begun, ended)} == {"records are there now"}
    # Of what went to the collector, it tells.
    (told,) = await adjustments(bus)
    assert (told.host_id, told.cause, told.replay_id) == ("h2", "retry", str(done.act_id))
    assert (told.frames, told.rows, told.uncertain) == (1, 1, True)


async def test_a_reject_of_a_replay_goes_back_as_one(bus: Bus) -> None:
    """Its rows may have been stored when its host sent it."""
    raw = encode_frame(frame([Row(VM)], run_id=new_id(), host="h1"))
    await Publisher(bus).publish(
        metrics_rejected(RejectReason.UNKNOWN_VM, "h1"), raw, msg_id="again",
        headers={HEADER_REASON: RejectReason.UNKNOWN_VM, HEADER_REPLAY: str(new_id())},
    )  # fmt: skip
    done = await retry(bus, [1], actor="ann", reason="jetzt: 100 % für h1")
    (message,) = await read_stream(bus, METRICS_RAW)
    assert retry_of(message.headers) == (str(done.act_id), "jetzt: 100 % für h1", True)


async def test_what_cannot_be_sent_again_stays(bus: Bus) -> None:
    """With a sentence that says what to do instead."""
    await refuse(bus, RejectReason.INVALID_FRAME, b"half", detail="cut from 2000000 bytes; x")
    done = await retry(bus, [1], actor="ann", reason="why not")
    assert "replay its origin" in done.left[1]
    assert await count_messages(bus, METRICS_REJECTED) == 1
    assert await count_messages(bus, METRICS_RAW) == 0


async def test_a_reject_that_is_thrown_away_is_gone(bus: Bus) -> None:
    """The others stay; the audit keeps how many of which kind."""
    for number in range(4):
        await refuse(bus, RejectReason.NOT_MSGPACK, b"%d" % number)
    done = await discard(bus, [1, 3], actor="ann", reason="rubbish of a test")
    assert (done.done, done.left) == ([1, 3], {})
    assert [r.sequence for r in await listed(bus)] == [2, 4]
    assert await record_at(bus, METRICS_REJECTED, 3) is None
    _, ended = await audit_entries(bus)
    assert ended.action == "rejected-discard"
    assert ended.details["kinds"] == "2 not_msgpack h1"


async def test_nothing_is_done_that_cannot_be_audited(tmp_path: Path) -> None:
    """No stream for the audit, no act."""
    async with bus_with_streams(tmp_path / "nats") as (_, bus):
        await refuse(bus, RejectReason.NOT_MSGPACK, b"x")
        await bus.js.delete_stream("AUDIT")
        with pytest.raises(TransientError):
            await discard(bus, [1], actor="ann", reason="rubbish")
        assert await count_messages(bus, METRICS_REJECTED) == 1


async def test_an_act_that_fails_is_audited_as_failed(bus: Bus) -> None:
    """With its error, and what had been done until then."""

    async def act() -> None:
        async with audited(
            bus, act_id=new_id(), actor="a", action="replay", target="t", reason="r", details={}
        ) as found:
            found["messages"] = "3"
            raise RuntimeError("something on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        await act()
    begun, ended = await audit_entries(bus)
    assert begun.details.keys() == {"act_id", "phase"}
    assert ended.outcome == "failed"
    assert ended.details["error"] == "something on the way"
    assert ended.details["messages"] == "3"


async def test_rows_that_were_refused_are_billed_after_a_retry(tmp_path: Path) -> None:
    """A VM whose record came too late: every tick counts after all, and none twice."""
    fleet = Fleet(20)
    late, *others = fleet.records
    async with (
        metering_stack(tmp_path / "stack") as stack,
        stack.bus() as bus,
        stored_frames(bus) as stored,
    ):
        await put_records(bus, others)
        await send(bus, fleet.frames())
        await stored.reach(40)
        refused = await listed(bus, reason="unknown_vm")
        assert [r.host for r in refused] == ["h1"] * 20
        truth = fleet.bills(20)
        assert await billed(bus) == {v: bill for v, bill in truth.items() if v != late.vm_id}
        await put_records(bus, [late])
        sequences = [r.sequence for r in refused]
        done = await retry(bus, sequences, actor="ann", reason="its record came late")
        assert done.done == sequences
        await stored.reach(60)
        assert await billed(bus) == truth
        assert await count_messages(bus, METRICS_REJECTED) == 0
        again = [m for m in await read_stream(bus, METRICS_RAW) if HEADER_REPLAY in m.headers]
        assert {decode_frame(m.data).vm_ids for m in again} == {late.vm_id.bytes}
        await all_collected(bus)
        told = await adjustments(bus)
        assert {(e.host_id, e.cause, e.reason, e.replay_id, e.uncertain) for e in told} == {
            ("h1", "retry", "its record came late", str(done.act_id), False)
        }
        assert (sum(e.frames for e in told), sum(e.rows for e in told)) == (20, 20)
        ticks = [f.tick_ms / 1000 for f in fleet.by_host["h1"]]
        assert min(e.first_tick.timestamp() for e in told) == ticks[0]
        assert max(e.last_tick.timestamp() for e in told) == ticks[-1]


async def test_what_is_refused_again_is_no_adjustment(tmp_path: Path) -> None:
    """It changes nothing; it is a reject as before."""
    fleet = Fleet(5)
    async with metering_stack(tmp_path / "stack") as stack, stack.bus() as bus:
        await put_records(bus, fleet.records[1:])
        async with stored_frames(bus) as stored:
            await send(bus, fleet.frames())
            await stored.reach(10)
        sequences = [r.sequence for r in await listed(bus)]
        assert len(sequences) == 5
        await retry(bus, sequences, actor="ann", reason="perhaps now")
        async with asyncio.timeout(30):
            while [r.sequence for r in await listed(bus)] != list(range(6, 11)):
                await asyncio.sleep(0.05)
        await all_collected(bus)
        assert await adjustments(bus) == []
