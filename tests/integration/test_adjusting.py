"""What is sent once more is told as what may change answers, before it is sent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from decisec.streams import replay
from decisec.streams.adjusting import Telling
from decisec.streams.replay import Replay, plan
from decisec.streams.selection import Selection
from decisec.streams.targets import BackOntoTheBus
from runtime.bus import Bus
from runtime.errors import TransientError
from runtime.reading import read_stream
from schemas import subjects
from schemas.events import AdjustmentCause
from schemas.frames import HEADER_REPLAY, encode_frame
from schemas.ids import new_id
from tests.support.frames import BASE_MS, Row, frame
from tests.support.nats import bus_with_streams
from tests.support.replays import Fleet, adjustments, put_records, send
from tests.support.store import Reading, enriched

VM = new_id()


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[Bus]:
    async with bus_with_streams(tmp_path / "nats") as (_, connection):
        yield connection


async def test_a_host_is_told_of_before_its_first_frame_and_then_ever_less_often(bus: Bus) -> None:
    """Nothing is left out in between: each frame is in one event, the last ones at the end."""
    now_s, replay_id = 0.0, new_id()
    telling = Telling(
        bus, AdjustmentCause.REPLAY, replay_id, "to be sure", monotonic_s=lambda: now_s
    )
    run = new_id()
    for seq in range(200):
        frames = [frame([Row(VM)] * 3, run_id=run, seq=seq, host="h1")]
        if seq >= 150:
            frames.append(frame([Row(VM)], run_id=run, seq=seq, host="h2"))
        frames.append(frame([], run_id=run, seq=seq, host="empty"))
        await telling.ahead(frames)
        now_s += 1
    await telling.rest()
    await telling.rest()
    told = await adjustments(bus)
    assert {(e.cause, e.replay_id, e.reason, e.uncertain) for e in told} == {
        ("replay", str(replay_id), "to be sure", True)
    }
    assert [(e.host_id, e.frames, e.rows) for e in told if e.host_id == "h1"] == [
        ("h1", frames, 3 * frames) for frames in (1, 10, 20, 40, 80, 49)
    ]
    assert [(e.host_id, e.frames) for e in told if e.host_id == "h2"] == [
        ("h2", 1), ("h2", 10), ("h2", 20), ("h2", 19),
    ]  # fmt: skip
    assert len(told) == 10
    first, second, *_ = told
    assert first.first_tick == first.last_tick
    assert first.first_tick.timestamp() == BASE_MS / 1000
    assert second.last_tick.timestamp() == (BASE_MS + 1000) / 1000


async def test_nothing_is_sent_that_cannot_be_told(bus: Bus) -> None:
    """No stream of host events, no replay; of hosts that nothing was sent of, nothing is told."""
    await send(bus, Fleet(3).frames())
    await bus.js.delete_stream(subjects.HOST_EVENTS)
    wanted = await plan(
        bus, source=subjects.METRICS_RAW, target="collector", begin=None, end=None,
        selection=Selection(),
    )  # fmt: skip
    telling = Telling(bus, AdjustmentCause.REPLAY, wanted.replay_id, "to be sure", limit_s=0.3)
    with pytest.raises(TransientError, match=r"host\.evt"):
        await Replay(bus, wanted, BackOntoTheBus(bus, wanted.replay_id)).run(telling)
    sent = [m for m in await read_stream(bus, subjects.METRICS_RAW) if HEADER_REPLAY in m.headers]
    assert sent == []


async def test_a_replay_says_which_hosts_it_may_have_changed(bus: Bus) -> None:
    """With its id and reason; only of those rows that were meant; a file changes nothing."""
    fleet = Fleet(30)
    await put_records(bus, fleet.records)
    await send(bus, fleet.frames())
    await replay(bus, "raw", lambda _row: None, begin=1)
    assert await adjustments(bus) == []
    vm_id = fleet.records[0].vm_id
    done = await replay(
        bus, "raw", "collector", begin=1, vm_ids=[vm_id], reason="rows lost on the way"
    )
    told = await adjustments(bus)
    assert {(e.host_id, e.cause, e.replay_id, e.reason, e.uncertain) for e in told} == {
        ("h1", "replay", str(done.plan.replay_id), "rows lost on the way", True)
    }
    assert (sum(e.frames for e in told), sum(e.rows for e in told)) == (30, 30)
    assert min(e.first_tick for e in told).timestamp() == fleet.by_host["h1"][0].tick_ms / 1000
    assert max(e.last_tick for e in told).timestamp() == fleet.by_host["h1"][-1].tick_ms / 1000


async def test_a_replay_to_the_batcher_is_told_as_well(bus: Bus) -> None:
    """No collector sees it."""
    for host in ("h1", "h2"):
        owned = enriched([Reading(VM, 1000)], host=host)
        await bus.js.publish(subjects.metrics_enriched(host), encode_frame(owned))
    await replay(bus, "enriched", "batcher", begin=1, hosts=["h2"], reason="the store was restored")
    (told,) = await adjustments(bus)
    assert (told.host_id, told.frames, told.rows) == ("h2", 1, 1)
    assert (told.cause, told.uncertain) == ("replay", True)
