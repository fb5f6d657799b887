"""Stretches of a stream on a real nats-server, in order and whole, whatever happens to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from decisec.streams.reading import (
    Record,
    Stretch,
    extent,
    record_at,
    records,
    remove,
    resolve,
    sequence_at,
)
from runtime.bus import Bus
from runtime.errors import FatalError
from runtime.publisher import Publisher
from schemas.subjects import METRICS_RAW, METRICS_REJECTED
from tests.support.nats import NatsServer, bus_with_streams


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[NatsServer, Bus]]:
    async with bus_with_streams(tmp_path / "nats") as pair:
        yield pair


async def publish(bus: Bus, count: int, host: str = "h1", begin: int = 0) -> None:
    publisher = Publisher(bus)
    for number in range(begin, begin + count):
        await publisher.publish(
            f"metrics.rejected.bad_shape.{host}", b"%d" % number, msg_id=f"{host}-{number}"
        )


async def read(bus: Bus, stretch: Stretch, filters: tuple[str, ...] = ()) -> list[Record]:
    return [r async for batch in records(bus, METRICS_REJECTED, stretch, filters) for r in batch]


async def test_a_range_is_resolved_by_sequence_and_by_time(
    served: tuple[NatsServer, Bus],
) -> None:
    """Both ends included by sequence; a time as end is excluded; the stream's own ends bound it."""
    _, bus = served
    await publish(bus, 10)
    everything = await read(bus, await resolve(bus, METRICS_REJECTED, None, None))
    assert [r.sequence for r in everything] == list(range(1, 11))
    assert [r.data for r in everything] == [b"%d" % n for n in range(10)]
    # Between two messages: the library's times are rounded to the µs.
    fifth, eighth = (
        everything[n - 1].at + (everything[n].at - everything[n - 1].at) / 2 for n in (4, 7)
    )
    for begin, end, stretch in (
        (3, 6, (3, 6)),
        (0, 99, (1, 10)),
        (fifth, eighth, (5, 7)),
        (fifth, 9, (5, 9)),
        (everything[0].at - timedelta(hours=1), None, (1, 10)),
        (everything[-1].at + timedelta(hours=1), None, (11, 10)),
        (None, fifth, (1, 4)),
    ):
        assert await resolve(bus, METRICS_REJECTED, begin, end) == stretch
    assert Stretch(11, 10).length == 0
    assert await read(bus, Stretch(11, 10)) == []
    assert await sequence_at(bus, METRICS_RAW, fifth) == 1
    assert (await extent(bus, METRICS_REJECTED)).messages == 10
    with pytest.raises(FatalError, match="streams apply"):
        await resolve(bus, "NOTHING", None, None)


async def test_what_is_not_there_is_passed_over(served: tuple[NatsServer, Bus]) -> None:
    """Removed messages, other hosts, and what is stored after the stretch was resolved."""
    _, bus = served
    await publish(bus, 200)
    await publish(bus, 5, host="h2")
    await publish(bus, 200, begin=200)
    stretch = await resolve(bus, METRICS_REJECTED, None, None)
    await publish(bus, 50, begin=400)
    for gone in (1, 7, 405):
        assert await remove(bus, METRICS_REJECTED, gone)
        assert not await remove(bus, METRICS_REJECTED, gone)
        assert await record_at(bus, METRICS_REJECTED, gone) is None
    found = await read(bus, stretch)
    assert [r.sequence for r in found] == [n for n in range(1, 405) if n not in (1, 7)]
    other = await read(bus, stretch, ("metrics.rejected.*.h2",))
    assert [r.sequence for r in other] == list(range(201, 206))
    assert await read(bus, stretch, ("metrics.rejected.*.h3",)) == []
    one = await record_at(bus, METRICS_REJECTED, 3)
    assert one is not None
    assert abs(one.at - found[1].at) <= timedelta(microseconds=1)  # rounded in two ways
    assert replace(one, at=found[1].at) == found[1]
    assert not (await bus.js.consumers_info(METRICS_REJECTED))


async def test_a_server_that_is_killed_in_between_costs_no_message(
    served: tuple[NatsServer, Bus],
) -> None:
    """The reading goes on behind what has been seen."""
    server, bus = served
    await publish(bus, 600)
    seen: list[int] = []
    async for batch in records(bus, METRICS_REJECTED, Stretch(1, 600)):
        seen += [record.sequence for record in batch]
        if len(seen) in (128, 384):
            epoch = bus.epoch
            await server.kill()
            await server.start()
            await bus.reconnected_after(epoch)
    assert seen == list(range(1, 601))
