"""Publishes whose acknowledgements are on their way, without a task or a timer for each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import msgspec
from nats.aio.msg import Msg

from runtime.bus import Bus
from runtime.errors import OverloadedError, TransientError

_STREAM_FULL = frozenset({10047, 10077})
"""JetStream error codes: insufficient storage, maximum messages or bytes exceeded."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a message stands in its stream; `duplicate` if it stood there already."""

    stream: str
    sequence: int
    duplicate: bool


Answer: TypeAlias = Stored | TransientError


class Awaited(NamedTuple):
    """A publish under way. The answer never comes as an exception, so none is left unseen."""

    number: str
    answer: asyncio.Future[Answer]


class _Refusal(msgspec.Struct, frozen=True):
    err_code: int = 0
    description: str = ""


class _PubAck(msgspec.Struct, frozen=True):
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
        self._count = 0
        self._waiting: dict[str, tuple[str, asyncio.Future[Answer]]] = {}
        self._room = asyncio.Event()

    async def send(self, subject: str, payload: bytes, headers: Mapping[str, str]) -> Awaited:
        """Send a message; whoever does so forgets it once its answer has come or is given up.

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
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[number] = subject, answer
        try:
            await self._bus.client.publish(
                subject, payload, reply=self._prefix + number, headers=dict(headers)
            )
        except BaseException:
            self.forget(number)
            raise
        return Awaited(number, answer)

    def forget(self, number: str) -> None:
        """Wait for this answer no longer. Harmless when it has come."""
        if self._waiting.pop(number, None) is not None:
            self._room.set()

    async def _listen(self) -> None:
        async with self._listening:
            if not self._prefix:
                prefix = f"{self._bus.client.new_inbox()}."
                await self._bus.client.subscribe(f"{prefix}*", cb=self._hear)
                self._prefix = prefix

    async def _hear(self, message: Msg) -> None:
        number = message.subject.rpartition(".")[2]
        subject, answer = self._waiting.get(number, ("", None))
        self.forget(number)
        if answer is not None and not answer.done():
            answer.set_result(_answer(subject, message))


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
