"""How far hosts have come, from the stream of enriched frames into the store.

A message at place E says of hosts what is true of the stream before E. It is true of the store
once every message before E is acknowledged, which is done after the store has it. With several
batchers on one consumer that is the consumer's ack floor, and not what one of them has done.

A message is acknowledged only once it is written, so none is lost with a batcher. Those that wait
hold up no frame. There are few of them: one that says no more than a later one is answered for at
once, except for the first. Were it dropped as well, the floor would never catch up under load.
"""

from __future__ import annotations

import asyncio
import hashlib
from array import array
from bisect import insort
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import pyarrow as pa
import structlog

from batcher.buffer import Custody
from batcher.refusals import Refusals
from runtime.consumer import Delivery
from runtime.errors import TransientError
from schemas.errors import MalformedMessageError
from schemas.progress import decode_host_progress
from schemas.subjects import METRICS_PROGRESS

_log = structlog.get_logger("decisec.progress")

TABLE = "host_progress"
_LOOK_EVERY_S = 0.25


class Sink(Protocol):
    """What is needed of the store."""

    async def insert(self, table: str, rows: pa.Table, *, token: str) -> None:
        """As `Store.insert`."""


@dataclass(frozen=True, slots=True)
class _Held:
    delivery: Delivery
    complete_ms: Mapping[str, int]

    def says_no_more_than(self, other: _Held) -> bool:
        later = other.complete_ms
        return all(later.get(host, -1) >= ms for host, ms in self.complete_ms.items())


class ProgressKeeper:
    """Holds what collectors say until it is true, and writes it down.

    Args:
        sink: The store.
        custody: Where deliveries are answered.
        refusals: For messages that cannot be read.
        ack_floor: The place up to which the consumer's messages are all acknowledged.
    """

    def __init__(
        self,
        sink: Sink,
        custody: Custody,
        refusals: Refusals,
        ack_floor: Callable[[], Awaitable[int]],
    ) -> None:
        self._sink = sink
        self._custody = custody
        self._refusals = refusals
        self._ack_floor = ack_floor
        self._held: list[_Held] = []
        self._written: dict[str, int] = {}

    def __len__(self) -> int:
        """How many messages wait."""
        return len(self._held)

    @staticmethod
    def concerns(delivery: Delivery) -> bool:
        """Whether this is no frame but says how far hosts have come."""
        return delivery.subject.startswith(METRICS_PROGRESS)

    async def take(self, delivery: Delivery) -> None:
        """Hold one message; it is answered later."""
        try:
            progress = decode_host_progress(delivery.data)
        except MalformedMessageError as error:
            await self._refusals.refuse(delivery, error.reason, error.detail)
            return
        insort(self._held, _Held(delivery, progress.complete_ms), key=_place)
        for superfluous in self._superfluous():
            self._held.remove(superfluous)
            await self._custody.ack(superfluous.delivery)

    async def run(self) -> None:
        """Write down what has become true, until cancelled.

        Raises:
            FatalError: The store refuses this user, or its tables are not the expected ones.
        """
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            if not self._held:
                continue
            try:
                await self.look()
            except TransientError as error:
                _log.debug("progress.postponed", held=len(self), error=str(error))

    async def look(self) -> bool:
        """Write down and answer for the first message, if it is true by now.

        Raises:
            TransientError: Store or server are away; nothing is lost.
            FatalError: As `run`.
        """
        first = self._held[0]
        if await self._ack_floor() < _place(first) - 1:
            return False
        news = {h: ms for h, ms in first.complete_ms.items() if ms > self._written.get(h, -1)}
        if news:
            await self._sink.insert(TABLE, _rows(news), token=_token(news))
            self._written |= news
        self._held.remove(first)
        await self._custody.ack(first.delivery)
        return True

    def _superfluous(self) -> list[_Held]:
        last = len(self._held) - 1
        return [
            held
            for number, held in enumerate(self._held)
            if 0 < number < last and any(map(held.says_no_more_than, self._held[number + 1 :]))
        ]


def _place(held: _Held) -> int:
    return held.delivery.sequence


def _rows(complete_ms: Mapping[str, int]) -> pa.Table:
    # Not by `pa.array`, for the reason that `batcher.batch` gives.
    names = [host.encode() for host in complete_ms]
    ends = pa.py_buffer(array("i", accumulate(map(len, names), initial=0)))
    columns: dict[str, pa.Array[Any]] = {
        "host": pa.StringArray.from_buffers(len(names), ends, pa.py_buffer(b"".join(names))),
        "complete_ms": pa.Array.from_buffers(
            pa.int64(), len(names), [None, pa.py_buffer(array("q", complete_ms.values()))]
        ),
    }
    return pa.table(columns)


def _token(complete_ms: Mapping[str, int]) -> str:
    return hashlib.sha256(repr(sorted(complete_ms.items())).encode()).hexdigest()
