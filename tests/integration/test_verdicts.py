"""Hosts that are silent for the configured time are declared lost, on a real nats-server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from runtime.buckets import RevisionConflictError
from runtime.bus import Bus
from runtime.errors import TransientError
from runtime.hosts import Hosts
from runtime.publisher import Publisher
from runtime.reading import read_stream
from schemas import subjects
from schemas.events import HostFound, HostLost, decode_host_event
from schemas.frames import HEADER_REPLAY, encode_frame
from schemas.ids import new_id
from tests.support.frames import frame, record
from tests.support.nats import NatsServer, bus_with_streams
from tests.support.replays import audit_entries
from tests.support.verdicts import AFTER_S, STEP_S, beat, deleted, judge, send_frame

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
VM = record(new_id(), host="h1")


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[NatsServer, Bus]]:
    async with bus_with_streams(tmp_path / "nats") as pair:
        yield pair


def now_ms() -> int:
    return int(datetime.now(UTC).timestamp() * 10) * 100


async def told(bus: Bus) -> list[HostLost | HostFound]:
    events = [decode_host_event(m.data) for m in await read_stream(bus, subjects.HOST_EVENTS)]
    return [event for event in events if isinstance(event, HostLost | HostFound)]


async def test_a_host_that_is_silent_for_the_time_is_declared_lost(
    served: tuple[NatsServer, Bus],
) -> None:
    """Not before; with the reason in the bucket and the audit, and an event that tells of it."""
    _, bus = served
    await send_frame(bus, "h1")
    async with judge(bus) as one:
        one.expect(VM)
        await one.turns(AFTER_S)
        assert await one.standing("h1") is None
        await one.turns(STEP_S)
        loss = await one.standing("h1")
        assert loss is not None
        assert loss.automatic
        assert loss.requested_by.startswith("collector ")
        assert loss.reason.startswith(f"no frame for {AFTER_S} s; the last one came at 20")
        await one.knows("h1", lost=True)
        await one.turns(3 * AFTER_S)
        assert await one.standing("h1") == loss
    entries = await audit_entries(bus)
    assert [(e.action, e.target, e.outcome, e.reason) for e in entries] == [
        ("host-lost", "h1", "under_way", loss.reason),
        ("host-lost", "h1", "succeeded", loss.reason),
    ]
    assert {e.actor for e in entries} == {loss.requested_by}
    (event,) = await told(bus)
    assert isinstance(event, HostLost)
    assert (event.host_id, event.at, event.reason) == ("h1", loss.declared_at, loss.reason)


async def test_a_host_that_nobody_waits_for_is_not_declared_lost(
    served: tuple[NatsServer, Bus],
) -> None:
    """Without VMs, or with all of them gone, and told so; one that died before it told is."""
    _, bus = served
    end = EPOCH + timedelta(milliseconds=now_ms()) - timedelta(minutes=10)
    for host, after_s in (("retired", 300), ("died", 5), ("idle", 300)):
        tick_ms = int((end.timestamp() + after_s) * 10) * 100
        await send_frame(bus, host, tick_ms=tick_ms)
    async with judge(bus) as one:
        for host in ("retired", "died", "forgotten"):
            one.expect(deleted(record(new_id(), host=host), end))
        await one.turns(AFTER_S + STEP_S)
        for host, is_lost in (
            ("retired", False), ("died", True), ("forgotten", False), ("idle", False),
        ):  # fmt: skip
            assert (await one.standing(host) is not None) is is_lost, host


async def test_a_host_that_shows_itself_is_not_declared_lost(
    served: tuple[NatsServer, Bus],
) -> None:
    """By a heartbeat, though its frames do not come; or by a frame that nobody collected yet."""
    _, bus = served
    beating, sending = record(new_id(), host="beating"), record(new_id(), host="sending")
    async with judge(bus) as one:
        one.expect(beating, sending, VM)
        await one.turns(AFTER_S)
        await beat(bus, "beating")
        await send_frame(bus, "sending")
        await one.turns(AFTER_S)
        assert await one.standing("beating") is None
        assert await one.standing("sending") is None
        assert await one.standing("h1") is not None
        await one.turns(STEP_S)
        assert await one.standing("sending") is not None


@pytest.mark.parametrize(
    ("stream", "durable"),
    [(subjects.METRICS_ENRICHED, "batcher"), (subjects.METRICS_RAW, "collector-0")],
)
async def test_a_host_is_not_lost_before_what_it_had_is_stored(
    served: tuple[NatsServer, Bus], stream: str, durable: str
) -> None:
    """Answers would pass rows that wait in a stream, for a batcher that is behind."""
    _, bus = served
    work = await bus.js.pull_subscribe("", durable=durable, stream=stream)
    await send_frame(bus, "h1")
    for host in ("h1", "h2"):
        await bus.js.publish(subjects.metrics_enriched(host), b"a frame")
    async with judge(bus) as one:
        one.expect(VM)
        await one.turns(3 * AFTER_S)
        assert await one.standing("h1") is None
        (first,) = await work.fetch(1, timeout=10)
        await first.ack_sync()
        await one.turns(STEP_S)
        assert await one.standing("h1") is not None


async def test_a_silence_that_was_the_collector_s_own_does_not_count(
    served: tuple[NatsServer, Bus],
) -> None:
    """It stood still, or NATS was away: the time begins anew for every host."""
    server, bus = served
    async with judge(bus) as one:
        one.expect(VM)
        await one.turns(AFTER_S - STEP_S)
        one.clock.s += 10 * AFTER_S
        await one.turns(AFTER_S)
        assert await one.standing("h1") is None
        await server.kill()
        one.clock.s += STEP_S
        with pytest.raises(TransientError):
            await one.verdicts.turn()
        epoch = bus.epoch
        await server.start()
        await bus.reconnected_after(epoch)
        await one.turns(AFTER_S)
        assert await one.standing("h1") is None
        await one.turns(STEP_S)
        assert await one.standing("h1") is not None


async def test_a_stream_that_does_not_answer_ends_every_count(
    served: tuple[NatsServer, Bus],
) -> None:
    """Where no frame could have been stored, none was left out by a host."""
    _, bus = served
    async with judge(bus) as one:
        one.expect(VM)
        await one.turns(AFTER_S)
        await bus.js.delete_stream(subjects.METRICS_RAW)
        with pytest.raises(TransientError):
            await one.turns(STEP_S)
        assert await one.standing("h1") is None


async def test_a_host_that_was_found_by_hand_is_the_operator_s_until_it_is_heard(
    served: tuple[NatsServer, Bus],
) -> None:
    """However long it is silent, and whichever collector listens; then the time counts again."""
    _, bus = served
    hosts = Hosts(bus)
    await send_frame(bus, "h1")
    async with judge(bus) as one:
        one.expect(VM)
        await one.turns(AFTER_S + STEP_S)
        await one.knows("h1", lost=True)
        assert await hosts.declare_found("h1", reason="it is repaired", requested_by="ann")
        await one.knows("h1", lost=False)
        await one.turns(3 * AFTER_S)
        assert await one.standing("h1") is None
    async with judge(bus) as another:
        another.expect(VM)
        await another.turns(3 * AFTER_S)
        assert await another.standing("h1") is None
        replayed = frame([], run_id=new_id(), host="h1")
        await Publisher(bus).publish(
            subjects.metrics_raw("h1"), encode_frame(replayed), msg_id="again",
            headers={HEADER_REPLAY: str(new_id())},
        )  # fmt: skip
        await another.turns(2 * AFTER_S)
        assert await another.standing("h1") is None
        await send_frame(bus, "h1")
        await another.turns(AFTER_S + STEP_S)
        assert await another.standing("h1") is not None
    kinds = [type(event) for event in await told(bus)]
    assert kinds[:2] == [HostLost, HostFound]


async def test_two_collectors_at_once_make_one_declaration(
    served: tuple[NatsServer, Bus],
) -> None:
    """Both see the same silence at the same moment; one of them is the first."""
    _, bus = served
    async with judge(bus) as one, judge(bus) as other:
        for each in (one, other):
            each.expect(*(record(new_id(), host=f"h{number}") for number in range(10)))
            await each.turns(AFTER_S)
            each.clock.s += STEP_S
        await asyncio.gather(one.verdicts.turn(), other.verdicts.turn())
        for number in range(10):
            await one.knows(f"h{number}", lost=True)
            await other.knows(f"h{number}", lost=True)
        await one.turns(STEP_S)
        await other.turns(STEP_S)
    made = [e for e in await audit_entries(bus) if e.outcome == "succeeded"]
    assert sorted(e.target for e in made) == [f"h{number}" for number in range(10)]
    events = await told(bus)
    assert len({event.event_id for event in events}) == 10
    revisions = await bus.js.stream_info(f"KV_{subjects.LOST_HOSTS}")
    assert revisions.state.last_seq == 10


async def test_an_operator_s_word_wins_over_a_declaration_under_way(
    served: tuple[NatsServer, Bus],
) -> None:
    """What was found between the look at the bucket and the write is not lost."""
    _, bus = served
    hosts = Hosts(bus)
    async with judge(bus) as one:
        bucket = one.verdicts.bucket
        mark = await bucket.mark("h1")
        loss = await hosts.declare_lost("h1", reason="burnt", requested_by="ann")
        await hosts.declare_found("h1", reason="it is not", requested_by="ann")
        with pytest.raises(RevisionConflictError):
            await bucket.update("h1", loss, mark.revision)
        assert await one.standing("h1") is None


async def test_a_host_that_has_caught_up_is_found_where_a_collector_had_declared_it(
    served: tuple[NatsServer, Bus],
) -> None:
    """Not by its first word, and not if an operator has made the loss hers."""
    _, bus = served
    hosts = Hosts(bus)
    async with judge(bus) as one:
        one.expect(VM, record(new_id(), host="h2"))
        await one.turns(AFTER_S + STEP_S)
        for host in ("h1", "h2"):
            await one.knows(host, lost=True)
        automatic = await one.standing("h2")
        assert automatic is not None
        theirs = await hosts.declare_lost("h2", reason="scrapped", requested_by="ann")
        assert (theirs.reason, theirs.automatic) == ("scrapped", False)
        assert theirs.declared_at == automatic.declared_at
        again = await hosts.declare_lost("h2", reason="really", requested_by="bob")
        assert again == theirs

        claims = one.partition.claims
        before = now_ms() - 3_600_000
        for host in ("h1", "h2"):
            claims.note(host, before, 1)
        claims.release(1)
        await one.turns(STEP_S)
        assert await one.standing("h1") is not None
        for host in ("h1", "h2"):
            claims.note(host, now_ms() + 100, 2)
        await one.turns(STEP_S)
        assert await one.standing("h1") is not None
        claims.release(2)
        await one.turns(STEP_S)
        assert await one.standing("h1") is None
        assert await one.standing("h2") == theirs
        await one.knows("h1", lost=False)
        await one.turns(STEP_S)
    found = [e for e in await audit_entries(bus) if e.action == "host-found"]
    assert [(e.target, e.outcome) for e in found] == [("h1", "under_way"), ("h1", "succeeded")]
    assert found[0].actor.startswith("collector ")
    assert [type(e) for e in await told(bus) if e.host_id == "h1"] == [HostLost, HostFound]
