"""Messages on their way to a stream, with as few steps for each as the client allows.

A flood shares its machine with what it measures, so it must cost little. `Publisher` waits for what
it was given; here nobody waits, and one sweep sends again, under their own ids, all those that were
refused, or have had no acknowledgement for a while.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import nats.errors
from nats.js.api import Header

from runtime.acks import Acks, Answer, Stored
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


@dataclass(slots=True, eq=False)
class _OnItsWay:
    """A letter that the stream does not have yet.

    Attributes:
        first_s: When it was sent first, monotonic.
        sent_s: When it was sent last; 0 if that was refused.
        number: Of its answer; None while it is being sent.
    """

    letter: Letter
    first_s: float
    sent_s: float = 0.0
    number: str | None = None


class Post:
    """Takes letters until the block of `posting` ends; see there."""

    def __init__(self, bus: Bus, told: Callable[[int], None]) -> None:
        self._bus = bus
        self._told = told
        self._acks = Acks(bus, max_in_flight=_OUTSTANDING)
        self._room = asyncio.Semaphore(_OUTSTANDING)
        self._on_their_way: set[_OnItsWay] = set()
        self._arrived = asyncio.Event()

    async def send(self, letter: Letter) -> None:
        """Send one, once there is room; that it arrives is the sweep's business."""
        await self._room.acquire()
        one = _OnItsWay(letter, time.monotonic())
        self._on_their_way.add(one)
        await self._out(one)

    async def _out(self, one: _OnItsWay) -> None:
        one.number, one.sent_s = None, time.monotonic()
        letter = one.letter
        try:
            one.number = await self._acks.send(
                letter.subject,
                letter.payload,
                {Header.MSG_ID: letter.msg_id},
                partial(self._answered, one),
            )
        except (nats.errors.Error, OSError):
            one.number = ""  # the sweep finds it without an acknowledgement

    def _answered(self, one: _OnItsWay, answer: Answer) -> None:
        if not isinstance(answer, Stored):
            one.sent_s = 0.0
            return
        self._on_their_way.remove(one)
        self._room.release()
        self._told(one.letter.rows)
        if not self._on_their_way:
            self._arrived.set()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            now_s = time.monotonic()
            for one in list(self._on_their_way):
                if one not in self._on_their_way:
                    continue  # it has arrived while others were sent again
                if now_s - one.first_s > _GIVE_UP_S:
                    raise TransientError(f"{one.letter.subject} takes nothing for {_GIVE_UP_S} s")
                if one.number is None or not self._bus.connected:
                    continue
                if now_s - one.sent_s > _AGAIN_S:
                    self._acks.forget(one.number)
                    await self._out(one)

    async def close(self) -> None:
        """Hear no more answers."""
        await self._acks.close()

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
    try:
        async with asyncio.TaskGroup() as group:
            sweeping = group.create_task(post._sweep(), name="post-sweep")
            yield post
            await post._settled()
            sweeping.cancel()
    except* TransientError as errors:
        raise errors.exceptions[0] from errors
    finally:
        await post.close()
