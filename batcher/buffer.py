"""Frames on their way into the store: bounded, and given out as batches when they are due."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import structlog

from runtime.clock import Clock
from runtime.consumer import Delivery
from runtime.errors import TransientError
from schemas.frames import EnrichedFrame
from schemas.units import NS_PER_MS, NS_PER_S

_log = structlog.get_logger("decisec.buffer")


@dataclass(frozen=True, slots=True)
class Held:
    """A decoded frame and the delivery that is to be answered for it."""

    delivery: Delivery
    frame: EnrichedFrame

    @property
    def rows(self) -> int:
        """What it adds to a batch."""
        return self.frame.rows

    @property
    def size(self) -> int:
        """Bytes of the message."""
        return len(self.delivery.data)


class Parcel(Protocol):
    """What a batch is made of."""

    @property
    def rows(self) -> int:
        """What it adds to a batch."""

    @property
    def size(self) -> int:
        """Bytes of the message."""


P = TypeVar("P", bound=Parcel)


@dataclass(frozen=True, slots=True)
class Limits:
    """When a batch is due: at so many rows, so many bytes, or at this age of its oldest part.

    Attributes:
        most_age_ms: At this age at the latest, where the store is slow.
        age_to_insert: How many times as long as an insert takes batches may grow old until then.
    """

    rows: int
    size: int
    age_ms: int
    most_age_ms: int = 500
    age_to_insert: int = 2


class Batches(Generic[P]):
    """Collects parcels for the next batch; `put` waits while a whole batch is there already.

    Attributes:
        age_ms: At which age of its oldest part the next batch is due.
    """

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self._limits = limits
        self.age_ms = limits.age_ms
        self._clock = clock
        self._held: list[P] = []
        self._rows = 0
        self._size = 0
        self._oldest_ns = 0
        self._closed = False
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()

    @property
    def full(self) -> bool:
        """Whether the next batch has reached its size."""
        return self._rows >= self._limits.rows or self._size >= self._limits.size

    async def put(self, held: P) -> None:
        """Add a parcel once there is room. Cancelled meanwhile, it has added nothing."""
        while self.full:
            self._emptied.clear()
            await self._emptied.wait()
        if not self._held:
            self._oldest_ns = self._clock.monotonic_ns()
        self._held.append(held)
        self._rows += held.rows
        self._size += held.size
        self._filled.set()

    def pace(self, insert_ns: int) -> None:
        """Let batches grow older where the store takes long for one.

        Much of what an insert costs it costs once, however many rows: half as many inserts of
        twice the rows take half of the CPU where each tells of all VMs. Batches are due no earlier
        than their limit says, and, unless that is later, no later than its `most_age_ms`.

        Args:
            insert_ns: How long the last insert took.
        """
        limits = self._limits
        wanted_ms = min(insert_ns * limits.age_to_insert // NS_PER_MS, limits.most_age_ms)
        self.age_ms = max(limits.age_ms, wanted_ms)

    def close(self) -> None:
        """No more will come: what is there is due now."""
        self._closed = True
        self._filled.set()

    async def take(self) -> list[P]:
        """The next batch, once it is due; empty only after `close`."""
        while not (self.full or self._closed):
            self._filled.clear()
            left_ns = self._left_ns()
            if left_ns is not None and left_ns <= 0:
                break
            try:
                async with asyncio.timeout(None if left_ns is None else left_ns / NS_PER_S):
                    await self._filled.wait()
            except TimeoutError:
                continue
        batch, self._held = self._held, []
        self._rows = self._size = 0
        self._emptied.set()
        return batch

    def _left_ns(self) -> int | None:
        if not self._held:
            return None
        return self._oldest_ns + self.age_ms * NS_PER_MS - self._clock.monotonic_ns()


class Buffer(Batches[Held]):
    """Collects frames."""


class Custody:
    """The deliveries that were taken and not answered yet; keeps the server from repeating them."""

    def __init__(self, clock: Clock, *, renew_after_s: float) -> None:
        self._clock = clock
        self._renew_after_ns = int(renew_after_s * NS_PER_S)
        self._since_ns: dict[int, tuple[Delivery, int]] = {}

    def __len__(self) -> int:
        """How many there are."""
        return len(self._since_ns)

    def take(self, delivery: Delivery) -> bool:
        """Note a delivery; false if the same message is held already and this is a repetition."""
        if delivery.sequence in self._since_ns:
            return False
        self._since_ns[delivery.sequence] = (delivery, self._clock.monotonic_ns())
        return True

    async def ack(self, delivery: Delivery) -> None:
        """Answer a delivery. A lost ack leads to a repetition, which changes nothing."""
        self.release(delivery)
        try:
            await delivery.ack()
        except TransientError as error:
            _log.warning("delivery.ack_failed", sequence=delivery.sequence, error=str(error))

    def release(self, delivery: Delivery) -> None:
        """Forget a delivery without an answer: the server will repeat it."""
        self._since_ns.pop(delivery.sequence, None)

    async def renew(self) -> int:
        """Ask for more time for all that have been held for long; returns how many."""
        now = self._clock.monotonic_ns()
        due = list(self._due(now))
        try:
            for delivery in due:
                await delivery.in_progress()
                if delivery.sequence in self._since_ns:
                    self._since_ns[delivery.sequence] = (delivery, now)
        except TransientError as error:
            _log.warning("delivery.renewal_failed", held=len(self), error=str(error))
        return len(due)

    def _due(self, now_ns: int) -> Iterator[Delivery]:
        for delivery, since_ns in self._since_ns.values():
            if now_ns - since_ns >= self._renew_after_ns:
                yield delivery
