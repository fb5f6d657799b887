"""The buffer in front of the store: nothing lost, bounds kept, batches when they are due."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.buffer import Buffer, Custody, Held, Limits
from batcher.refusals import header_text
from runtime.clock import SystemClock
from runtime.consumer import Delivery
from runtime.errors import TransientError
from schemas.frames import encode_frame
from schemas.ids import new_id
from schemas.units import NS_PER_MS
from tests.support.store import Reading, enriched


@dataclass
class Answers:
    """Stands for the server's side of a delivery."""

    said: list[str] = field(default_factory=list)
    away: bool = False

    async def ack(self) -> None:
        self._say("ack")

    async def in_progress(self) -> None:
        self._say("in_progress")

    def _say(self, word: str) -> None:
        if self.away:
            raise OSError("no server")
        self.said.append(word)


@dataclass
class HandClock:
    """A clock that stands until it is moved."""

    now_ns: int = 0

    def wall_ns(self) -> int:
        return self.now_ns

    def monotonic_ns(self) -> int:
        return self.now_ns

    async def sleep_until(self, monotonic_ns: int) -> None:
        self.now_ns = max(self.now_ns, monotonic_ns)


def delivery(sequence: int, data: bytes = b"", answers: Answers | None = None) -> Delivery:
    raw: Any = answers or Answers()
    return Delivery(raw, "metrics.enriched.h1", data, {}, "METRICS_ENRICHED", sequence, 1)


def held(sequence: int, rows: int = 1) -> Held:
    frame = enriched([Reading(new_id(), 1000) for _ in range(rows)], seq=sequence)
    return Held(delivery(sequence, encode_frame(frame)), frame)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 4), max_size=30), st.integers(1, 10))
async def test_all_frames_come_out_once_and_in_order(sizes: list[int], limit: int) -> None:
    """However frames and limits fall, batches joined are the frames, none far beyond its size."""
    buffer = Buffer(Limits(rows=limit, size=10**9, age_ms=1), SystemClock())
    frames = [held(number, rows) for number, rows in enumerate(sizes)]

    async def fill() -> None:
        for item in frames:
            await buffer.put(item)
        buffer.close()

    got: list[Held] = []
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(fill(), name="fill")
        while batch := await buffer.take():
            assert sum(item.frame.rows for item in batch) < limit + 4
            got += batch
    assert got == frames


async def test_a_full_buffer_makes_the_intake_wait() -> None:
    """While the store is away no more than one batch waits behind the one in work."""
    buffer = Buffer(Limits(rows=2, size=10**9, age_ms=10_000), SystemClock())
    await buffer.put(held(0))
    await buffer.put(held(1))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await buffer.put(held(2))
    assert [item.delivery.sequence for item in await buffer.take()] == [0, 1]
    await buffer.put(held(3))
    buffer.close()
    assert [item.delivery.sequence for item in await buffer.take()] == [3]


async def test_a_lone_frame_goes_at_its_age() -> None:
    """Nothing waits for company longer than the age limit."""
    buffer = Buffer(Limits(rows=1000, size=10**9, age_ms=30), SystemClock())
    await buffer.put(held(0))
    async with asyncio.timeout(5):
        assert len(await buffer.take()) == 1


@pytest.mark.parametrize(
    ("insert_ms", "least_ms", "age_ms"),
    [(10, 200, 200), (150, 200, 300), (249, 200, 498), (10_000, 200, 500), (10_000, 900, 900)],
)
def test_batches_grow_older_where_the_store_is_slow(
    insert_ms: int, least_ms: int, age_ms: int
) -> None:
    """Twice as old as the last insert took, within bounds; and younger again after that."""
    buffer = Buffer(Limits(rows=10, size=10**9, age_ms=least_ms), SystemClock())
    buffer.pace(insert_ms * NS_PER_MS)
    assert buffer.age_ms == age_ms
    buffer.pace(0)
    assert buffer.age_ms == least_ms


async def test_a_repeated_delivery_is_taken_once() -> None:
    """While a message is held, its repetition is left alone; afterwards it counts anew."""
    custody = Custody(HandClock(), renew_after_s=2)
    answers = Answers()
    first = delivery(7, answers=answers)
    assert custody.take(first)
    assert not custody.take(delivery(7))
    await custody.ack(first)
    assert answers.said == ["ack"]
    assert custody.take(delivery(7))


async def test_what_is_held_for_long_is_renewed() -> None:
    """Only deliveries near their end cost a message, and a server that is away no error."""
    clock = HandClock()
    custody = Custody(clock, renew_after_s=2)
    old, young = Answers(), Answers()
    custody.take(delivery(1, answers=old))
    clock.now_ns = 2 * 10**9
    custody.take(delivery(2, answers=young))
    assert await custody.renew() == 1
    assert await custody.renew() == 0
    assert (old.said, young.said) == (["in_progress"], [])
    old.away = young.away = True
    clock.now_ns = 10 * 10**9
    assert await custody.renew() == 2


async def test_a_lost_ack_is_no_error() -> None:
    """The server repeats the message, and storing it again changes nothing."""
    custody = Custody(HandClock(), renew_after_s=2)
    gone = delivery(1, answers=Answers(away=True))
    custody.take(gone)
    await custody.ack(gone)
    assert len(custody) == 0
    with pytest.raises(TransientError):
        await gone.ack()


@settings(deadline=None)
@given(st.text())
def test_a_header_is_one_line_of_ascii(text: str) -> None:
    """No input of a host can add a header of its own."""
    assert header_text(text).isprintable()
    assert header_text(text).isascii()
    assert len(header_text(text)) <= 300
