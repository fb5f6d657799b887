"""Messages of somebody who writes what no client library would: they end no connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runtime.bus import Bus, Message
from runtime.consumer import Consumer
from schemas.subjects import VM_COMMANDS
from tests.support.nats import NatsServer, bus_with_streams
from tests.support.raw_bus import raw_bus

pytestmark = pytest.mark.timeout(30)

SUBJECTS = (b"\xff", b"a\x0bb", b"a\x0cb", b"\x00", b"a" * 4000, "ä\u2028".encode())
HEADERS = (
    b"",
    b"\r\n",
    b" \xff\xff\xff\r\n\r\n",
    b" 100 \xff\r\nA: b\r\n\r\n",
    b" 409 Consumer Deleted\r\n\r\n",
    b" 100\r\nNats-Consumer-Stalled: vm.cmd.h1.x\r\n\r\n",
    b"\r\nno colon\r\n\r\n",
    b"\r\n\xff: \xff\r\n: \r\n\r\n",
    b"\r\nStatus: 404\r\nNats-Pending-Messages: many\r\n\r\n",
    b"\r\ntraceparent: 00-\x00-zz\r\nbaggage: =,;=\xff\r\n\r\n",
)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[NatsServer, Bus]]:
    async with bus_with_streams(tmp_path / "nats") as made:
        yield made


async def test_a_subscription_hears_them_and_what_comes_after(
    served: tuple[NatsServer, Bus],
) -> None:
    """Text where it is text; the connection stands all the time."""
    server, bus = served
    heard: list[Message] = []

    async def hear(message: Message) -> None:
        heard.append(message)

    await bus.subscribe("vm.req.acme.>", hear)
    await bus.client.flush()
    async with raw_bus(server.port) as raw:
        for token in SUBJECTS:
            raw.send(b"vm.req.acme." + token, b"x")
        for header in HEADERS[1:]:
            raw.send(b"vm.req.acme.get", b"x", header=header)
        raw.send(b"vm.req.acme.get", b"last")
        await raw.flush()
    while not heard or heard[-1].data != b"last":
        await asyncio.sleep(0.01)
    assert len(heard) == len(SUBJECTS) + len(HEADERS)
    assert heard[0].subject == "vm.req.acme.\ufffd"
    assert bus.epoch == 0


async def test_a_consumer_gets_rid_of_them(served: tuple[NatsServer, Bus]) -> None:
    """None is taken for the server's own word, however it looks; none comes again."""
    server, bus = served
    async with raw_bus(server.port) as raw:
        for token in SUBJECTS:
            raw.send(b"vm.cmd.h1." + token, b"")
        for header in HEADERS:
            raw.send(b"vm.cmd.h1.x", b"", header=header)
        await raw.flush()
    consumer = Consumer(bus, VM_COMMANDS, "agent-h1", filter_subjects=("vm.cmd.h1.>",))
    stop = asyncio.Event()
    taken = 0
    async for batch in consumer.batches(stop):
        for delivery in batch:
            taken += 1
            await delivery.term()
        if taken == len(SUBJECTS) + len(HEADERS):
            stop.set()
    while (await bus.js.stream_info(VM_COMMANDS)).state.messages:
        await asyncio.sleep(0.01)
    assert bus.epoch == 0
