"""Whoever stops taking from a stream leaves nothing that only the ack wait would bring back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.bus import Bus
from runtime.consumer import Consumer
from runtime.pinned import PinnedConsumer
from runtime.publisher import Publisher
from tests.support.nats import bus_with_streams

ACK_WAIT_S = 60.0
ENDS = 20


def shared(bus: Bus) -> Consumer:
    """One of several that share the work."""
    return Consumer(bus, "METRICS_RAW", "ending", max_batch=8, ack_wait_s=ACK_WAIT_S)


def pinned(bus: Bus) -> PinnedConsumer:
    """One that has a partition for itself."""
    return PinnedConsumer(
        bus, "METRICS_RAW", "ending", "metrics.raw.*.*", max_batch=8, ack_wait_s=ACK_WAIT_S
    )


@pytest.mark.parametrize("consumer_of", [shared, pinned])
async def test_what_is_on_the_wire_at_the_end_comes_again_at_once(
    tmp_path: Path, consumer_of: Callable[[Bus], Consumer | PinnedConsumer]
) -> None:
    """Stopped again and again under load; the next one gets it all, long before the ack wait."""
    seen: set[int] = set()
    sent = 0
    full = asyncio.Event()

    async def publish(bus: Bus) -> None:
        nonlocal sent
        publisher = Publisher(bus)
        while not full.is_set():
            await publisher.publish("metrics.raw.h1", b"x" * 2000, msg_id=f"{sent}")
            sent += 1

    async def take(bus: Bus, enough: Callable[[int], bool]) -> None:
        stop = asyncio.Event()
        taken = 0
        async for batch in consumer_of(bus).batches(stop):
            for delivery in batch:
                seen.add(delivery.sequence)
                await delivery.ack()
            taken += len(batch)
            if enough(taken):
                stop.set()

    async with bus_with_streams(tmp_path) as (_, bus), asyncio.timeout(ACK_WAIT_S / 2):
        async with asyncio.TaskGroup() as group:
            group.create_task(publish(bus), name="publish")
            for _ in range(ENDS):
                await take(bus, lambda taken: taken >= 20)
            full.set()
        if len(seen) < sent:
            await take(bus, lambda _: len(seen) == sent)
    assert seen == set(range(1, sent + 1))
