"""A flood's post: every letter arrives, and is told of once, whatever its stream does."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.js.api import DiscardPolicy

from runtime.acks import Acks
from runtime.bus import Bus
from tests.load.flood.posting import Letter, posting
from tests.support.nats import NatsServer, bus_with_streams

SUBJECT = "metrics.raw.h1"


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[NatsServer, Bus]]:
    async with bus_with_streams(tmp_path) as pair:
        yield pair


def letters(count: int) -> list[Letter]:
    """Each tells another number of rows, so that it is known whose they are."""
    return [Letter(SUBJECT, b"x", f"m:{number}", number) for number in range(1, count + 1)]


async def stored(bus: Bus) -> int:
    return (await bus.js.stream_info("METRICS_RAW")).state.messages


async def test_all_arrive_across_a_kill_of_the_server(served: tuple[NatsServer, Bus]) -> None:
    """What had no answer is sent again under its own id, and told once; nothing listens on."""
    server, bus = served
    told: Counter[int] = Counter()
    listening = set(bus.client._subs)
    async with asyncio.timeout(60), posting(bus, lambda rows: told.update([rows])) as post:
        for letter in letters(3000):
            await post.send(letter)
            if letter.rows == 1500:
                await server.kill()
                await server.start()
    assert told == Counter(range(1, 3001))
    assert await stored(bus) == 3000
    assert set(bus.client._subs) == listening


async def test_what_is_refused_is_sent_until_there_is_room(
    served: tuple[NatsServer, Bus],
) -> None:
    """By a stream that is full, and where none is yet."""
    _, bus = served
    config = (await bus.js.stream_info("METRICS_RAW")).config
    full = config.evolve(max_msgs=5, discard=DiscardPolicy.NEW)
    await bus.js.update_stream(full)
    told: list[int] = []
    async with asyncio.timeout(60), posting(bus, told.append) as post:
        for letter in letters(8):
            await post.send(letter)
        await post.send(Letter("nobody.takes.this", b"x", "early", 9))
        while len(told) < 5:
            await asyncio.sleep(0.01)
        assert await stored(bus) == 5
        await bus.js.update_stream(config)
        await bus.js.add_stream(name="LATE", subjects=["nobody.takes.*"])
    assert sorted(told) == list(range(1, 10))
    assert await stored(bus) == 8


async def test_one_that_stands_there_already_is_told_as_well(
    served: tuple[NatsServer, Bus],
) -> None:
    """Its samples are in the stream, whoever sent them."""
    _, bus = served
    told: list[int] = []
    for _ in range(2):
        async with asyncio.timeout(20), posting(bus, told.append) as post:
            await post.send(letters(1)[0])
    assert (told, await stored(bus)) == ([1, 1], 1)


async def test_an_answer_that_was_forgotten_is_heard_by_nobody(
    served: tuple[NatsServer, Bus],
) -> None:
    """Of two messages the later one's answer comes, so the first one's has come before it."""
    _, bus = served
    acks, heard = Acks(bus, max_in_flight=2), asyncio.Queue[str]()
    first = await acks.send(SUBJECT, b"x", {}, lambda _: heard.put_nowait("first"))
    acks.forget(first)
    acks.forget(first)
    await acks.send(SUBJECT, b"x", {}, lambda _: heard.put_nowait("second"))
    async with asyncio.timeout(20):
        assert await heard.get() == "second"
    assert heard.empty()
    assert await stored(bus) == 2
    await acks.close()
    await acks.close()
