"""Consumers at which one instance works at a time, on a real nats-server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from runtime.bus import Bus
from runtime.consumer import Delivery
from runtime.pinned import PinnedConsumer
from runtime.publisher import Publisher
from runtime.streams import Drift, apply, compare, declared
from schemas import subjects
from tests.support.nats import NatsServer, bus_with_streams

HOSTS = [f"h{number}" for number in range(100)]


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[NatsServer, Bus]]:
    async with bus_with_streams(tmp_path / "nats") as pair:
        yield pair


class Worker:
    """Takes what one consumer gives, and acks it unless told not to.

    Attributes:
        taken: Payload and tenure of each delivery.
        acks: Whether it answers.
    """

    def __init__(self, bus: Bus) -> None:
        self.taken: list[tuple[str, int]] = []
        self.acks = True
        self.consumer = PinnedConsumer(
            bus, subjects.METRICS_RAW, "shared", "metrics.raw.*.*", max_batch=10, ack_wait_s=1.0
        )
        self._news = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        async for batch in self.consumer.batches(stop):
            for delivery in batch:
                self._note(delivery)
                if self.acks:
                    await delivery.ack()

    async def has(self, *wanted: str) -> None:
        async with asyncio.timeout(20):
            while not set(wanted) <= {data for data, _ in self.taken}:
                self._news.clear()
                await self._news.wait()

    def _note(self, delivery: Delivery) -> None:
        self.taken.append((delivery.data.decode(), self.consumer.tenure))
        self._news.set()


@asynccontextmanager
async def working(worker: Worker) -> AsyncIterator[None]:
    """It works for the length of the block, and gives back what it had at its end."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(worker.run(stop), name="worker")
        try:
            yield
        finally:
            stop.set()


async def put(bus: Bus, *names: str) -> None:
    publisher = Publisher(bus)
    for name in names:
        await publisher.publish("metrics.raw.h1", name.encode(), msg_id=name)


async def test_one_works_and_the_other_stands_by(served: tuple[NatsServer, Bus]) -> None:
    """All goes to one of them; the other takes over at once when that one leaves."""
    _, bus = served
    first, second = Worker(bus), Worker(bus)
    async with AsyncExitStack() as later:
        async with working(first):
            await put(bus, "a")
            await first.has("a")
            await later.enter_async_context(working(second))
            await put(bus, *"bcdef")
            await first.has(*"bcdef")
        await put(bus, "g")
        await second.has("g")
    assert [data for data, _ in first.taken] == list("abcdef")
    assert [data for data, _ in second.taken] == ["g"]


async def test_a_turn_of_another_ends_the_tenure(served: tuple[NatsServer, Bus]) -> None:
    """What was concluded before it is void after it; without another one it stays."""
    _, bus = served
    first, second = Worker(bus), Worker(bus)
    async with working(first):
        await put(bus, "a")
        await first.has("a")
    async with working(first):
        await put(bus, "b")
        await first.has("b")
    assert first.taken == [("a", 1), ("b", 1)]
    async with working(second):
        await put(bus, "c")
        await second.has("c")
    async with working(first):
        await put(bus, "d")
        await first.has("d")
    assert first.taken[-1] == ("d", 2)


async def test_a_new_pin_alone_ends_no_tenure(served: tuple[NatsServer, Bus]) -> None:
    """The server has forgotten who was pinned, but nobody else was given anything."""
    _, bus = served
    worker = Worker(bus)
    async with working(worker):
        await put(bus, "a", "b")
        await worker.has("a", "b")
        subject = f"$JS.API.CONSUMER.UNPIN.{subjects.METRICS_RAW}.shared"
        await bus.request(subject, b'{"group": "one"}', timeout_s=5)
        await put(bus, "c")
        await worker.has("c")
    assert worker.taken == [("a", 1), ("b", 1), ("c", 1)]


@pytest.mark.chaos
async def test_work_goes_on_after_a_server_that_was_killed(served: tuple[NatsServer, Bus]) -> None:
    """By itself, and though the server may have forgotten what was answered."""
    server, bus = served
    worker = Worker(bus)
    async with working(worker):
        await put(bus, "a", "b")
        await worker.has("a", "b")
        epoch = bus.epoch
        await server.kill()
        await server.start()
        await bus.reconnected_after(epoch)
        await put(bus, "c")
        await worker.has("c")


async def test_work_that_takes_long_stays_with_its_worker(served: tuple[NatsServer, Bus]) -> None:
    """Longer than the ack wait and the pin's end: neither it nor what waits behind it moves."""
    _, bus = served
    first, second = Worker(bus), Worker(bus)
    stop = asyncio.Event()
    await put(bus, *"abcdefghijkl")
    async with asyncio.TaskGroup() as group:
        batches = first.consumer.batches(stop)
        batch = await anext(batches)
        group.create_task(second.run(stop), name="second")
        await asyncio.sleep(3.0)  # the long work itself
        for delivery in batch:
            assert delivery.attempts == 1
            await delivery.ack()
        rest = 12 - len(batch)
        while rest:
            for delivery in await anext(batches):
                assert delivery.attempts == 1
                await delivery.ack()
                rest -= 1
        stop.set()
        with pytest.raises(StopAsyncIteration):
            await anext(batches)
    assert second.taken == []


async def test_what_is_left_unanswered_comes_again(served: tuple[NatsServer, Bus]) -> None:
    """A delivery that its worker gave up on is renewed no longer."""
    _, bus = served
    worker = Worker(bus)
    worker.acks = False
    async with working(worker):
        await put(bus, "a")
        await worker.has("a")
        worker.acks = True
        async with asyncio.timeout(10):
            while len(worker.taken) < 2:
                await asyncio.sleep(0.05)
    assert worker.taken == [("a", 1), ("a", 1)]


async def test_the_server_divides_hosts_as_we_do(served: tuple[NatsServer, Bus]) -> None:
    """Each is stored in the partition that `partition_of` names."""
    _, bus = served
    publisher = Publisher(bus)
    for host in HOSTS:
        await publisher.publish(subjects.metrics_raw(host), b"x", msg_id=host)
    info = await bus.js.stream_info(subjects.METRICS_RAW, subjects_filter=">")
    assert set(info.state.subjects or {}) == {
        subjects.metrics_raw_of(subjects.partition_of(host, 8)).replace("*", host) for host in HOSTS
    }


async def test_partitions_are_declared_and_compared(served: tuple[NatsServer, Bus]) -> None:
    """Another number of them is a difference, and can be applied."""
    _, bus = served
    wanted = declared(partitions=16)
    differing = [d for d in await compare(bus, wanted) if d.drift is not Drift.SAME]
    assert [(d.name, set(d.fields)) for d in differing] == [("METRICS_RAW", {"subject_transform"})]
    await apply(bus, wanted)
    assert all(d.drift is Drift.SAME for d in await compare(bus, wanted))
