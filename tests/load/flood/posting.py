"""Messages on their way to a stream, with as few steps for each as the client allows.

A flood shares its machine with what it measures, so it must cost little. `Publisher` waits for what
it was given; here nobody waits, and one sweep sends again, under their own ids, all those that have
had no acknowledgement for a while.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec
import nats.errors
from nats.aio.msg import Msg
from nats.js.api import Header

from runtime.bus import Bus
from runtime.errors import TransientError

_OUTSTANDING = 2048
"""Messages on their way at most; a server that is slower than the plan slows the flood down."""
_SWEEP_S = 0.5
_AGAIN_S = 5.0
_GIVE_UP_S = 120.0


@dataclass(frozen=True, slots=True)
class Letter:
    """One message; `rows` are samples that are not counted elsewhere."""

    subject: str
    payload: bytes
    msg_id: str
    rows: int


class _Ack(msgspec.Struct):
    """What a stream answers; an empty `stream` or an `error` means that it has not stored it."""

    stream: str = ""
    error: dict[str, object] | None = None


@dataclass(slots=True)
class _OnItsWay:
    letter: Letter
    first_s: float
    sent_s: float = field(default=0.0)


class Post:
    """Takes letters until the block of `posting` ends; see there."""

    def __init__(self, bus: Bus, told: Callable[[int], None]) -> None:
        self._bus = bus
        self._told = told
        self._inbox = bus.client.new_inbox()
        self._room = asyncio.Semaphore(_OUTSTANDING)
        self._on_their_way: dict[str, _OnItsWay] = {}
        self._count = 0
        self._arrived = asyncio.Event()
        self._decode = msgspec.json.Decoder(_Ack).decode

    async def send(self, letter: Letter) -> None:
        """Send one, once there is room; that it arrives is the sweep's business."""
        await self._room.acquire()
        self._count += 1
        reply = f"{self._inbox}.{self._count}"
        self._on_their_way[reply] = one = _OnItsWay(letter, time.monotonic())
        await self._out(reply, one)

    async def _out(self, reply: str, one: _OnItsWay) -> None:
        one.sent_s = time.monotonic()
        letter = one.letter
        try:
            await self._bus.client.publish(
                letter.subject, letter.payload, reply, {Header.MSG_ID: letter.msg_id}
            )
        except (nats.errors.Error, OSError):
            return  # the sweep finds it without an acknowledgement

    async def _acknowledged(self, message: Msg) -> None:
        one = self._on_their_way.get(message.subject)
        if one is None:
            return  # sent twice, acknowledged twice
        try:
            ack = self._decode(message.data)
        except msgspec.DecodeError:
            ack = _Ack()  # no stream there at the moment: an empty message with a status
        if ack.error is not None or not ack.stream:
            one.sent_s = 0.0
            return
        del self._on_their_way[message.subject]
        self._room.release()
        self._told(one.letter.rows)
        if not self._on_their_way:
            self._arrived.set()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            now_s = time.monotonic()
            for reply, one in list(self._on_their_way.items()):
                if now_s - one.first_s > _GIVE_UP_S:
                    raise TransientError(f"{one.letter.subject} takes nothing for {_GIVE_UP_S} s")
                if now_s - one.sent_s > _AGAIN_S and self._bus.connected:
                    await self._out(reply, one)

    async def _settled(self) -> None:
        while self._on_their_way:
            self._arrived.clear()
            await self._arrived.wait()


@asynccontextmanager
async def posting(bus: Bus, told: Callable[[int], None]) -> AsyncIterator[Post]:
    """A post for the length of the block, which ends once everything has arrived.

    Args:
        bus: To the stream.
        told: Called with the samples of each letter that the stream has.

    Raises:
        TransientError: The stream takes a letter for two minutes not.
    """
    post = Post(bus, told)
    inbox = await bus.client.subscribe(f"{post._inbox}.*", cb=post._acknowledged)
    try:
        async with asyncio.TaskGroup() as group:
            sweeping = group.create_task(post._sweep(), name="post-sweep")
            yield post
            await post._settled()
            sweeping.cancel()
    except* TransientError as errors:
        raise errors.exceptions[0] from errors
    finally:
        if bus.connected:
            await inbox.unsubscribe()
