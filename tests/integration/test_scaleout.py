"""Collectors that share the hosts: spread evenly, and taking over from one that dies or hangs."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from collector.parting import DURABLE
from runtime.buckets import Bucket
from runtime.bus import Bus, Message
from runtime.consumer import Consumer
from runtime.publisher import Publisher
from runtime.reading import read_stream
from runtime.streams import apply, declared
from schemas import subjects
from schemas.events import HostHeard, HostSuspected, decode_host_event, event_type
from schemas.frames import HEADER_COMPLETE_MS, Frame, decode_enriched_frame, encode_frame
from schemas.ids import new_id
from schemas.subjects import partition_of
from schemas.vms import decode_vm_record
from tests.support.collector import CollectorProcess, all_collected, collector_process, roll_of
from tests.support.frames import Row, busy_frames, frame, record
from tests.support.nats import NatsServer, bus_with_streams, nats_server

pytestmark = pytest.mark.chaos

HOSTS = tuple(f"host-{number}" for number in range(16))
TICK_S = 0.1
SETTINGS = {"suspect_after_s": "2"}
"""Shorter than a takeover, longer than what a busy machine delays this test's own frames."""


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[NatsServer, Bus]]:
    async with bus_with_streams(tmp_path / "nats") as pair:
        yield pair


class Crowd:
    """Hosts that send a frame each 100 ms, and what has become of their frames.

    Attributes:
        sent: Frames that stand in the raw stream.
        newest: Of each host, the last frame that came out, by its number.
        told: Events of hosts, by type.
    """

    def __init__(self, bus: Bus) -> None:
        self.sent: list[Frame] = []
        self.newest: dict[str, int] = {}
        self.told: Counter[str] = Counter()
        self._bus = bus
        self._frames: dict[str, Iterator[Frame]] = {}
        self._arrived = asyncio.Event()
        self._stop = asyncio.Event()
        self._stopped = asyncio.Event()

    async def prepare(self) -> None:
        bucket = Bucket(self._bus, subjects.VM_SPECS, decode_vm_record)
        start_ms = time.time_ns() // 10**8 * 100
        for host in HOSTS:
            vm_ids = [new_id(), new_id()]
            for vm_id in vm_ids:
                one = record(vm_id, host=host)
                await bucket.put(subjects.vm_key(one.customer_id, vm_id), one)
            self._frames[host] = busy_frames(vm_ids, 10_000, start_ms=start_ms, host=host)
        await self._bus.subscribe("metrics.enriched.*", self._see)
        await self._bus.subscribe("host.evt.>", self._listen)

    async def stop(self) -> None:
        """Send no more; returns when what was sent is stored."""
        self._stop.set()
        await self._stopped.wait()

    async def send(self) -> None:
        """At the hosts' own speed, until told to stop."""
        publisher = Publisher(self._bus)
        due_s = time.monotonic()
        while not self._stop.is_set():
            frames = [next(frames) for frames in self._frames.values()]
            async with asyncio.TaskGroup() as group:
                for frame in frames:
                    group.create_task(publish(publisher, frame), name="send")
            self.sent += frames
            due_s += TICK_S
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        self._stopped.set()

    async def served_anew(self, timeout_s: float) -> float:
        """Wait until a frame of each host has come out that is sent from now on; the seconds."""
        began_s = time.monotonic()
        next_seq = len(self.sent) // len(HOSTS) + 1
        async with asyncio.timeout(timeout_s):
            while any(self.newest.get(host, -1) < next_seq for host in HOSTS):
                self._arrived.clear()
                await self._arrived.wait()
        return time.monotonic() - began_s

    async def check(self) -> None:
        """Each frame came out once, none was refused, and nobody spoke of gaps or silence."""
        await all_collected(self._bus)
        out = [
            decode_enriched_frame(m.data)
            for m in await read_stream(self._bus, subjects.METRICS_ENRICHED)
        ]
        assert Counter(e.msg_id for e in out) == Counter(f.msg_id for f in self.sent)
        assert await read_stream(self._bus, subjects.METRICS_REJECTED) == []
        assert self.told == {}

    async def _see(self, message: Message) -> None:
        frame = decode_enriched_frame(message.data)
        self.newest[frame.host] = max(frame.seq, self.newest.get(frame.host, -1))
        self._arrived.set()

    async def _listen(self, message: Message) -> None:
        event = decode_host_event(message.data)
        # Once they have been stopped, hosts are silent indeed, until what was left of theirs comes.
        if not (self._stop.is_set() and isinstance(event, HostSuspected | HostHeard)):
            self.told[event_type(event)] += 1


async def publish(publisher: Publisher, frame: Frame) -> None:
    await publisher.publish(
        subjects.metrics_raw(frame.host), encode_frame(frame), msg_id=frame.msg_id
    )


@asynccontextmanager
async def crowd_of(bus: Bus) -> AsyncIterator[Crowd]:
    """Hosts that send for the length of the block."""
    crowd = Crowd(bus)
    await crowd.prepare()
    async with asyncio.TaskGroup() as group:
        group.create_task(crowd.send(), name="crowd")
        try:
            yield crowd
        finally:
            await crowd.stop()


@asynccontextmanager
async def crew(folder: Path, nats_url: str, size: int) -> AsyncIterator[list[CollectorProcess]]:
    """So many collectors for the length of the block."""
    async with AsyncExitStack() as exits:
        yield [
            await exits.enter_async_context(
                collector_process(folder, nats_url, name=f"collector-{number}", **SETTINGS)
            )
            for number in range(size)
        ]


async def former_collector(bus: Bus, crowd: Crowd) -> set[str]:
    """Work as collectors did before there were partitions; the ids of what was acknowledged."""
    done: set[str] = set()
    stop = asyncio.Event()
    async for batch in Consumer(bus, subjects.METRICS_RAW, DURABLE, ack_wait_s=1).batches(stop):
        for delivery in batch[::2]:
            await delivery.ack_sync()
            done.add(delivery.headers["Nats-Msg-Id"])
        if len(done) > 2 * len(HOSTS):
            stop.set()
    assert len(done) < len(crowd.sent)
    return done


async def test_collectors_come_and_go_in_order(
    served: tuple[NatsServer, Bus], tmp_path: Path
) -> None:
    """One to three and back under load: always spread evenly, and no frame waits for long."""
    server, bus = served
    roll = await roll_of(bus)
    async with (
        crowd_of(bus) as crowd,
        collector_process(tmp_path, server.url, name="one", **SETTINGS) as one,
        collector_process(tmp_path, server.url, name="two", **SETTINGS) as two,
    ):
        await roll.spread_over(2)
        async with collector_process(tmp_path, server.url, name="three", **SETTINGS) as three:
            await roll.spread_over(3)
            await crowd.served_anew(10)
            assert await three.stop() == 0
        await roll.spread_over(2)
        # Asked to go, a collector hands over at once: nobody waits for it to be missed.
        assert await crowd.served_anew(10) < 2.0
        assert await two.stop() == 0
        await roll.spread_over(1)
        await crowd.served_anew(10)
        await crowd.stop()
        await crowd.check()
        assert await one.stop() == 0


@pytest.mark.parametrize("collectors", [2, 3])
async def test_others_take_over_from_a_killed_collector(
    served: tuple[NatsServer, Bus], tmp_path: Path, collectors: int
) -> None:
    """Within 5 s all hosts are served again; nothing is lost, doubled, or called missing."""
    server, bus = served
    roll = await roll_of(bus)
    async with crowd_of(bus) as crowd, crew(tmp_path, server.url, collectors) as processes:
        await roll.spread_over(collectors)
        await crowd.served_anew(10)
        await processes[0].kill()
        assert await crowd.served_anew(20) < 5.0
        await crowd.stop()
        await crowd.check()


async def test_a_collector_that_was_frozen_does_no_harm(
    served: tuple[NatsServer, Bus], tmp_path: Path
) -> None:
    """Others take over from it as from a dead one; awake again it gets its share back."""
    server, bus = served
    roll = await roll_of(bus)
    async with crowd_of(bus) as crowd, crew(tmp_path, server.url, 2) as processes:
        await roll.spread_over(2)
        await crowd.served_anew(10)
        await processes[0].freeze()
        assert await crowd.served_anew(20) < 5.0
        processes[0].send(signal.SIGCONT)
        await roll.spread_over(2)
        await crowd.served_anew(10)
        await crowd.stop()
        await crowd.check()


async def test_a_stream_without_partitions_is_parted_under_load(tmp_path: Path) -> None:
    """What was acknowledged before stays so, what was not is done, and no frame is left behind."""
    async with (
        nats_server(tmp_path / "nats") as server,
        Bus.connect(server.settings(), name="test") as bus,
    ):
        await apply(bus, declared())
        former = (await bus.js.stream_info(subjects.METRICS_RAW)).config
        await bus.js.delete_stream(subjects.METRICS_RAW)
        await bus.js.add_stream(former.evolve(subjects=["metrics.raw.>"], subject_transform=None))
        async with crowd_of(bus) as crowd:
            done = await former_collector(bus, crowd)
            async with collector_process(tmp_path, server.url, **SETTINGS):
                await crowd.served_anew(30)  # it has to start first
                await apply(bus, declared())
                await crowd.served_anew(15)
                await crowd.stop()
                crowd.sent = [f for f in crowd.sent if f.msg_id not in done]
                await crowd.check()


async def test_the_number_of_partitions_changes_under_load(
    served: tuple[NatsServer, Bus], tmp_path: Path
) -> None:
    """More of them, then fewer: no frame is left behind in one that there is no more."""
    server, bus = served
    async with crowd_of(bus) as crowd, crew(tmp_path, server.url, 2):
        await crowd.served_anew(20)
        for partitions in (12, 5):
            await apply(bus, declared(partitions=partitions))
            await crowd.served_anew(10)
        await crowd.stop()
        await crowd.check()


async def test_progress_waits_for_frames_left_in_a_former_partition(
    served: tuple[NatsServer, Bus], tmp_path: Path
) -> None:
    """A host's claim lies in its new partition, and speaks of a frame in its old one as well."""
    server, bus = served
    host = next(h for h in HOSTS if partition_of(h, 8) != partition_of(h, 5))
    known, awaited = new_id(), new_id()
    bucket = Bucket(bus, subjects.VM_SPECS, decode_vm_record)
    await bucket.put(subjects.vm_key("acme", known), record(known, host=host))
    publisher, run_id = Publisher(bus), new_id()
    first_ms = time.time_ns() // 10**8 * 100 - 10_000

    async def send(seq: int, *, claims: bool) -> None:
        vm_ids = [known] if seq else [known, awaited]
        sent = frame(
            [Row(v) for v in vm_ids],
            run_id=run_id,
            seq=seq,
            tick_ms=first_ms + seq * 100,
            host=host,
        )
        await publisher.publish(
            subjects.metrics_raw(host),
            encode_frame(sent),
            msg_id=sent.msg_id,
            headers={HEADER_COMPLETE_MS: str(sent.tick_ms)} if claims else None,
        )

    async def told() -> tuple[int, int]:
        """Places of the first frame and of the first word of progress, once both are there."""
        while True:
            places: dict[int, int] = {}
            for place, message in enumerate(await read_stream(bus, subjects.METRICS_ENRICHED), 1):
                if message.subject.startswith(subjects.METRICS_PROGRESS):
                    places.setdefault(-1, place)
                else:
                    places.setdefault(decode_enriched_frame(message.data).seq, place)
            if -1 in places:
                return places.get(0, 0), places[-1]
            await asyncio.sleep(0.05)

    await send(0, claims=False)
    async with collector_process(tmp_path, server.url, unknown_wait_s="60"):
        await apply(bus, declared(partitions=5))
        for seq in (1, 2, 3):
            await send(seq, claims=True)
        # What must not come can only be waited for.
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(4):
                await told()
        await bucket.put(subjects.vm_key("acme", awaited), record(awaited, host=host))
        async with asyncio.timeout(30):
            frame_at, progress_at = await told()
        assert 0 < frame_at < progress_at
