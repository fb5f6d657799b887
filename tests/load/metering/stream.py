"""Backlogs for streams, and how fast they were worked off by the stream's own clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec
import nats.errors
import nats.js.errors

from runtime.buckets import Bucket
from runtime.bus import Bus, Message
from schemas import subjects
from schemas.frames import Frame, FramesStored, encode_frame
from schemas.vms import VmRecord, decode_vm_record
from tests.load.flood.posting import Letter, posting

_LOOK_S = 0.1


def nothing(_: int) -> None:
    """For those who need not be told."""


async def put_records(bus: Bus, records: Iterable[VmRecord]) -> None:
    """What the gateway would have written of the VMs."""
    bucket = Bucket(bus, subjects.VM_SPECS, decode_vm_record)
    waiting = iter(records)

    async def work() -> None:
        for record in waiting:
            await bucket.put(subjects.vm_key(record.customer_id, record.vm_id), record)

    async with asyncio.TaskGroup() as group:
        for number in range(64):
            group.create_task(work(), name=f"records-{number}")


async def put_frames(bus: Bus, frames: Iterable[Frame]) -> tuple[int, int]:
    """Raw frames into their stream; how many, and how many samples."""
    messages = samples = 0
    async with posting(bus, nothing) as post:
        for frame in frames:
            await post.send(
                Letter(subjects.metrics_raw(frame.host), encode_frame(frame), frame.msg_id, 0)
            )
            messages, samples = messages + 1, samples + frame.rows
    return messages, samples


async def holds(bus: Bus, stream: str, messages: int, *, timeout_s: float) -> None:
    """Return once a stream has so many messages.

    Raises:
        TimeoutError: It has not in time.
    """
    async with asyncio.timeout(timeout_s):
        while await _count(bus, stream) < messages:
            await asyncio.sleep(_LOOK_S)


async def _count(bus: Bus, stream: str) -> int:
    try:
        return (await bus.js.stream_info(stream)).state.messages
    except (nats.errors.Error, nats.js.errors.Error, OSError):
        return 0


async def taken_s(bus: Bus, stream: str) -> float:
    """From a stream's first message to its last, by the server's clock."""
    state = (await bus.js.stream_info(stream)).state
    return await _at_s(bus, stream, state.last_seq) - await _at_s(bus, stream, state.first_seq)


async def first_s(bus: Bus, stream: str) -> float:
    """When a stream got its first message, Unix s."""
    return await _at_s(bus, stream, (await bus.js.stream_info(stream)).state.first_seq)


async def _at_s(bus: Bus, stream: str, sequence: int) -> float:
    message = await bus.js.get_msg(stream, sequence)
    if message.time is None:
        raise RuntimeError(f"{stream} does not say when it got message {sequence}")
    return message.time.timestamp()


@dataclass
class Ear:
    """Hears what batchers say that they have stored."""

    heard: list[FramesStored] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def on_stored(self, message: Message) -> None:
        """Handler of `metrics.stored`."""
        self.heard.append(msgspec.json.decode(message.data, type=FramesStored))
        self.news.set()

    async def until(self, what: Callable[[list[FramesStored]], bool], *, timeout_s: float) -> None:
        """Return once it is true of all that was heard.

        Raises:
            TimeoutError: It was not in time.
        """
        async with asyncio.timeout(timeout_s):
            while not what(self.heard):
                self.news.clear()
                await self.news.wait()


@asynccontextmanager
async def listening(bus: Bus) -> AsyncIterator[Ear]:
    """An ear for the length of the block."""
    ear = Ear()
    subscription = await bus.subscribe(subjects.METRICS_STORED, ear.on_stored)
    try:
        yield ear
    finally:
        if bus.connected:
            await subscription.unsubscribe()


def rate(count: int, seconds: float) -> int:
    """So many a second.

    Raises:
        RuntimeError: It took no time: there was too little to measure.
    """
    if seconds <= 0:
        raise RuntimeError("too little work for a rate; give more --seconds")
    return round(count / seconds)
