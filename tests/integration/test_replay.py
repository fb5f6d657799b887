"""Replays through the whole pipeline and past it: no bill changes, and nothing is left out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from decisec.live.feed import following, now_ms
from decisec.streams.checkpoint import Plan, Progress
from decisec.streams.reading import extent
from decisec.streams.replay import Replay, overflow_bytes, plan
from decisec.streams.selection import Selection
from decisec.streams.targets import BATCHER, COLLECTOR, BackOntoTheBus, Nowhere
from runtime.bus import Bus
from runtime.reading import count_messages, read_stream
from schemas.events import GapOpened, decode_host_event
from schemas.frames import HEADER_REPLAY, decode_frame, encode_frame
from schemas.ids import new_id
from schemas.subjects import (
    HOST_EVENTS,
    METRICS_ENRICHED,
    METRICS_RAW,
    METRICS_REJECTED,
    metrics_enriched,
)
from tests.support.nats import NatsServer, bus_with_streams
from tests.support.replays import Fleet, billed, put_records, send, stored_frames
from tests.support.stack import metering_stack
from tests.support.store import Reading, enriched

SOURCE = {COLLECTOR: METRICS_RAW, BATCHER: METRICS_ENRICHED}


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[NatsServer, Bus]]:
    async with bus_with_streams(tmp_path / "nats") as pair:
        yield pair


async def replay(
    bus: Bus,
    target: str,
    begin: int | None = None,
    end: int | None = None,
    selection: Selection | None = None,
    *,
    again: bool = False,
) -> Progress:
    """A whole one, as fast as it goes."""
    wanted = await plan(
        bus, source=SOURCE[target], target=target, begin=begin, end=end,
        selection=selection or Selection(), again=again, reason="test",
    )  # fmt: skip
    return await Replay(bus, wanted, BackOntoTheBus(bus, wanted.replay_id)).run()


async def test_no_replay_changes_a_bill(tmp_path: Path) -> None:
    """Any range, host, customer or VM, any number of times, to collector and batcher; also live."""
    fleet = Fleet(80)
    sent = 40
    async with (
        metering_stack(tmp_path / "stack") as stack,
        stack.bus() as bus,
        stored_frames(bus) as stored,
    ):
        await put_records(bus, fleet.records)
        await send(bus, fleet.frames(0, sent))
        expected = 2 * sent
        await stored.reach(expected)
        truth = fleet.bills(sent)
        assert await billed(bus) == truth
        acme = Selection(customers=("acme",))
        one_vm = Selection(vm_ids=(fleet.records[0].vm_id,), hosts=("h1",))
        for target, begin, end, selection in (
            (COLLECTOR, None, None, None),
            (COLLECTOR, 5, 60, None),
            (COLLECTOR, 1, 80, acme),
            (COLLECTOR, 20, 40, one_vm),
            (BATCHER, None, None, None),
            (BATCHER, 7, 30, acme),
            # Hosts in different partitions come out in any order: either may fill half of it.
            (BATCHER, 7, 80, one_vm),
            (COLLECTOR, None, None, None),
        ):
            done = await replay(bus, target, begin, end, selection)
            assert done.messages > 0
            assert not done.undecodable
            expected += done.messages
            await stored.reach(expected)
            assert await billed(bus) == truth, (target, begin, end, selection)
        async with asyncio.TaskGroup() as group:
            live = group.create_task(send(bus, fleet.frames(sent)), name="live")
            replays = [
                group.create_task(replay(bus, target, again=target == BATCHER), name=target)
                for target in (COLLECTOR, BATCHER)
            ]
        assert live.done()
        expected += 2 * (fleet.ticks - sent) + sum(task.result().messages for task in replays)
        await stored.reach(expected)
        assert await billed(bus) == fleet.bills(fleet.ticks)
        # Only what came from its host has a lag to tell.
        assert stored.lags == 2 * fleet.ticks
        assert await count_messages(bus, METRICS_REJECTED) == 0
        events = [decode_host_event(m.data) for m in await read_stream(bus, HOST_EVENTS)]
        assert not [event for event in events if isinstance(event, GapOpened)]


async def raw_sent_again(bus: Bus) -> list[str]:
    """Ids of the replayed frames in the raw stream, in its order."""
    found = await read_stream(bus, METRICS_RAW)
    return [m.headers["Nats-Msg-Id"] for m in found if HEADER_REPLAY in m.headers]


class HeldUp(BackOntoTheBus):
    """Stands still once it has taken so many messages."""

    def __init__(self, bus: Bus, wanted: Plan, most: int) -> None:
        super().__init__(bus, wanted.replay_id)
        self.reached = asyncio.Event()
        self._left = most

    async def take(self, items: object) -> None:
        await super().take(items)  # type: ignore[arg-type]
        self._left -= len(items)  # type: ignore[arg-type]
        if self._left <= 0:
            self.reached.set()
            await asyncio.Event().wait()


async def test_a_replay_that_is_interrupted_goes_on_where_it_was(
    served: tuple[NatsServer, Bus],
) -> None:
    """All of it is sent, and what was sent twice is stored once."""
    _, bus = served
    fleet = Fleet(200)
    await send(bus, fleet.frames())
    wanted = await plan(
        bus, source=METRICS_RAW, target=COLLECTOR, begin=None, end=None, selection=Selection()
    )
    held = HeldUp(bus, wanted, 130)
    first = Replay(bus, wanted, held)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(first.run(), name="replay")
        async with asyncio.timeout(20):
            await held.reached.wait()
        running.cancel()
    assert 0 < first.progress.cursor < 400
    before = len(await raw_sent_again(bus))
    assert before > first.progress.messages
    target = BackOntoTheBus(bus, wanted.replay_id)
    done = await Replay(bus, wanted, target, progress=first.progress).run()
    assert (done.messages, done.cursor, done.samples) == (400, 400, 1200)
    assert done.hosts == {"h1": 200, "h2": 200}
    ids = await raw_sent_again(bus)
    assert sorted(ids) == sorted(f"replay:{wanted.replay_id}:{n}" for n in range(1, 401))


async def test_a_replay_outlives_nats(served: tuple[NatsServer, Bus]) -> None:
    """Killed and started again amid it: everything is sent once."""
    server, bus = served
    await send(bus, Fleet(300).frames())
    wanted = await plan(
        bus, source=METRICS_RAW, target=COLLECTOR, begin=None, end=None, selection=Selection()
    )
    half = asyncio.Event()

    def told(progress: Progress) -> None:
        if progress.messages > 200:
            half.set()

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        target = BackOntoTheBus(bus, wanted.replay_id)
        work = Replay(bus, wanted, target, told=told)
        running = group.create_task(work.run(), name="replay")
        await half.wait()
        assert not running.done()
        await server.kill()
        await server.start()
    assert running.result().messages == 600
    assert (
        len(set(await raw_sent_again(bus))) == 600 == await count_messages(bus, METRICS_RAW) - 600
    )


async def test_replays_leave_out_rubbish_and_replays(served: tuple[NatsServer, Bus]) -> None:
    """Unless they are meant; a trimmed frame holds the rows that are meant."""
    _, bus = served
    fleet = Fleet(10)
    await put_records(bus, fleet.records)
    await send(bus, fleet.frames())
    await bus.js.publish("metrics.raw.h1", b"\xc1 rubbish")
    await bus.js.publish(
        "metrics.raw.h1", encode_frame(fleet.by_host["h2"][0]), headers={"Decisec-Complete-Ms": "5"}
    )
    await bus.js.publish(
        "metrics.raw.h1", encode_frame(fleet.by_host["h1"][0]), headers={"Decisec-Complete-Ms": "5"}
    )
    wanted = fleet.records[0].vm_id
    part = await replay(bus, COLLECTOR, selection=Selection(vm_ids=(wanted,)))
    assert (part.messages, part.samples, part.undecodable, part.other) == (11, 11, 2, 10)
    again = await replay(bus, COLLECTOR)
    assert (again.messages, again.replays) == (21, 11)
    both = await replay(bus, COLLECTOR, end=again.cursor, again=True)
    assert (both.messages, both.replays) == (32, 0)
    sent = [m for m in await read_stream(bus, METRICS_RAW) if HEADER_REPLAY in m.headers]
    assert {decode_frame(m.data).vm_ids for m in sent[:11]} == {wanted.bytes}
    claims = {name for m in sent for name in m.headers if name.startswith("Decisec-")}
    assert claims == {HEADER_REPLAY}


class Purging(Nowhere):
    """The stream discards its oldest messages while this takes the first ones."""

    def __init__(self, bus: Bus, first_left: int) -> None:
        self._bus = bus
        self._first_left = first_left

    async def take(self, items: object) -> None:
        await self._bus.js.purge_stream(METRICS_RAW, seq=self._first_left)


@pytest.mark.parametrize(("first_left", "gone"), [(301, 172), (100, 0), (401, 272)])
async def test_what_is_discarded_before_it_is_read_is_told(
    served: tuple[NatsServer, Bus], first_left: int, gone: int
) -> None:
    """A slow replay of the oldest messages, in a stream that is full; 128 are read at once."""
    _, bus = served
    await send(bus, Fleet(200).frames())
    wanted = await plan(
        bus, source=METRICS_RAW, target=COLLECTOR, begin=None, end=None, selection=Selection()
    )
    done = await Replay(bus, wanted, Purging(bus, first_left)).run()
    assert (done.messages, done.gone) == (400 - gone, gone)


class Stopwatch:
    """A clock that jumps to whatever moment is waited for."""

    def __init__(self) -> None:
        self.now_ns = 0

    def wall_ns(self) -> int:
        return self.now_ns

    def monotonic_ns(self) -> int:
        return self.now_ns

    async def sleep_until(self, monotonic_ns: int) -> None:
        self.now_ns = max(self.now_ns, monotonic_ns)


async def test_a_replay_takes_as_long_as_its_speed_says(served: tuple[NatsServer, Bus]) -> None:
    """By the times at which the stream stored the messages."""
    _, bus = served
    await send(bus, Fleet(50).frames())
    wanted = Plan(
        replay_id=Fleet(1).records[0].vm_id, source=METRICS_RAW, target="terminal", first=1,
        last=100, speed=0.5,
    )  # fmt: skip
    clock = Stopwatch()
    done = await Replay(bus, wanted, Nowhere(), clock=clock).run()
    assert done.messages == 100
    raw = [await bus.js.get_msg(METRICS_RAW, n) for n in (1, 100)]
    assert raw[0].time is not None
    assert raw[1].time is not None
    span_ns = (raw[1].time - raw[0].time).total_seconds() * 10**9
    assert clock.now_ns == pytest.approx(span_ns / 0.5, abs=10_000)


async def test_a_replay_that_has_no_room_is_told(served: tuple[NatsServer, Bus]) -> None:
    """The stream would discard its oldest messages for it."""
    _, bus = served
    await send(bus, Fleet(50).frames())
    wanted = await plan(
        bus, source=METRICS_RAW, target=COLLECTOR, begin=None, end=None, selection=Selection()
    )
    assert await overflow_bytes(bus, wanted) == 0
    holds = await extent(bus, METRICS_RAW)
    config = (await bus.js.stream_info(METRICS_RAW)).config
    await bus.js.update_stream(config.evolve(max_bytes=holds.size_bytes + 1000))
    assert await overflow_bytes(bus, wanted) == pytest.approx(holds.size_bytes - 1000, rel=0.01)


async def test_looking_on_shows_no_replay(served: tuple[NatsServer, Bus]) -> None:
    """`top` shows what VMs do now: what a replay brings was once."""
    _, bus = served
    past, now = (enriched([Reading(new_id(), 1000)]) for _ in range(2))
    async with following(bus) as live:
        headers = {HEADER_REPLAY: str(new_id())}
        await bus.js.publish(metrics_enriched("h1"), encode_frame(past), headers=headers)
        await bus.js.publish(metrics_enriched("h1"), encode_frame(now))
        async with asyncio.timeout(10):
            while not (rates := live.rates(now_ms())):
                await asyncio.sleep(0.01)
        assert [vm.vm_id.bytes for vm in rates] == [now.vm_ids]
