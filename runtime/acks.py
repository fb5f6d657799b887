"""Publishes whose acknowledgements are on their way, without a task or a timer for each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeAlias

import msgspec
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from runtime.bus import Bus
from runtime.errors import OverloadedError, TransientError

_STREAM_FULL = frozenset({10047, 10077})
"""JetStream error codes: insufficient storage, maximum messages or bytes exceeded."""


class Stored(msgspec.Struct, frozen=True, gc=False):
    """Where a message stands in its stream; `duplicate` if it stood there already."""

    stream: str
    sequence: int
    duplicate: bool


Answer: TypeAlias = Stored | TransientError


class _Refusal(msgspec.Struct, frozen=True, gc=False):
    err_code: int = 0
    description: str = ""


class _PubAck(msgspec.Struct, frozen=True, gc=False):
    """https://docs.nats.io/reference/reference-protocols/nats_api_reference, `$JS` publish ack."""

    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: _Refusal | None = None


_decode: Callable[[bytes], _PubAck] = msgspec.json.Decoder(_PubAck).decode


class Acks:
    """Sends messages to streams and tells their acknowledgements apart by reply subject.

    The library's own asynchronous publish makes a random id, two callbacks and a timer for each
    message, and hands a refusal to nobody.

    Args:
        max_in_flight: `send` waits while so many are not answered.
    """

    def __init__(self, bus: Bus, *, max_in_flight: int) -> None:
        self._bus = bus
        self._max_in_flight = max_in_flight
        self._listening = asyncio.Lock()
        self._prefix = ""
        self._inbox: Subscription | None = None
        self._count = 0
        self._waiting: dict[str, tuple[str, Callable[[Answer], None]]] = {}
        self._room = asyncio.Event()

    async def send(
        self,
        subject: str,
        payload: bytes,
        headers: dict[str, str],
        answered: Callable[[Answer], None],
    ) -> str:
        """Send a message. `answered` is called once, or never if the number is forgotten before.

        Whoever sends forgets it when giving up. An answer that says no is no exception, so none is
        left unseen.

        Returns:
            The number to forget.

        Raises:
            nats.errors.Error, OSError: It was not sent.
        """
        if not self._prefix:
            await self._listen()
        while len(self._waiting) >= self._max_in_flight:
            self._room.clear()
            await self._room.wait()
        self._count += 1
        number = f"{self._count:x}"
        self._waiting[number] = subject, answered
        try:
            await self._bus.client.publish(subject, payload, self._prefix + number, headers)
        except BaseException:
            self.forget(number)
            raise
        return number

    def forget(self, number: str) -> None:
        """Wait for this answer no longer. Harmless when it has come."""
        if self._waiting.pop(number, None) is not None:
            self._room.set()

    async def close(self) -> None:
        """Hear no more answers. For those who end before their connection does."""
        inbox, self._inbox = self._inbox, None
        if inbox is not None and self._bus.connected:
            await inbox.unsubscribe()

    async def _listen(self) -> None:
        async with self._listening:
            if not self._prefix:
                prefix = f"{self._bus.client.new_inbox()}."
                self._inbox = await self._bus.client.subscribe(f"{prefix}*", cb=self._hear)
                self._prefix = prefix

    async def _hear(self, message: Msg) -> None:
        waiting = self._waiting.pop(message.subject[len(self._prefix) :], None)
        if waiting is None:
            return  # forgotten
        self._room.set()
        subject, answered = waiting
        answered(_answer(subject, message))


def _answer(subject: str, message: Msg) -> Answer:
    if not message.data:
        return TransientError(f"{subject} was not stored: no stream takes it")
    try:
        ack = _decode(message.data)
    except msgspec.DecodeError as error:
        return TransientError(f"{subject} was not stored: the answer is no ack ({error})")
    if ack.error is None:
        return Stored(ack.stream, ack.seq, ack.duplicate)
    if ack.error.err_code in _STREAM_FULL:
        return OverloadedError(f"the stream of {subject} is full")
    return TransientError(
        f"{subject} was not stored: {ack.error.description} ({ack.error.err_code})"
    )
