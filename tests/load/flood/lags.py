"""How long it takes until frames can be queried, counted from the moment at which each was due."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.bus import Bus, Message
from schemas.codec import decoder
from schemas.errors import MalformedMessageError
from schemas.frames import FramesStored
from schemas.subjects import METRICS_STORED
from schemas.units import NS_PER_MS, TICK_MS
from tests.load.flood.latencies import Latencies
from tests.load.flood.plan import Plan

_BURST_EVERY_S = 10.0
_BURST_HOLD_S = 1.0
_US_PER_MS = 1000

_decode_stored = decoder(FramesStored)


@dataclass(frozen=True, slots=True)
class Course:
    """One host's frames: when each is due, and what is done to it.

    Attributes:
        first_ms: Tick of the first one.
        start_s: When that is due, monotonic.
        fates: Chances of each frame, by which it is late, sent twice, spoiled, and how late.
    """

    plan: Plan
    first_ms: int
    start_s: float
    fates: npt.NDArray[np.float64]

    def due_s(self, seq: int) -> float:
        """When a frame is to be sent, monotonic: after the silence, if one comes before a burst."""
        due_s = self.start_s + seq / self.plan.hz
        if self.plan.burst and due_s % _BURST_EVERY_S > _BURST_EVERY_S - _BURST_HOLD_S:
            due_s += _BURST_EVERY_S - due_s % _BURST_EVERY_S
        return due_s

    def in_order(self, seq: int) -> bool:
        """Whether a frame is neither late nor behind its successors on purpose."""
        return bool(self.fates[seq, 0] >= self.plan.late + self.plan.reorder)


class Lags:
    """Hears from batchers how far each host has come in the store, which tells of every frame.

    A batcher names the newest tick of each host in a flush. A host's frames are stored in their
    order, so all of them up to there can be queried by then, none is sampled. Those that the plan
    sends late or behind their successors are left out: when they come is the plan's doing.

    Args:
        told: Called with the samples that have been stored anew, as far as this tells.
    """

    def __init__(self, told: Callable[[int], None] = lambda _: None) -> None:
        self._told = told
        self._ms: Counter[int] = Counter()
        self._courses: dict[str, Course] = {}
        self._next: dict[str, int] = {}
        self._wall_ms = 0

    def expect(self, courses: dict[str, Course]) -> None:
        """What will be sent, by host."""
        self._courses = courses
        self._next = dict.fromkeys(courses, 0)
        self._wall_ms = time.time_ns() // NS_PER_MS - round(time.monotonic() * 1000)

    async def hear(self, message: Message) -> None:
        """Handler of `metrics.stored`."""
        try:
            stored = _decode_stored(message.data)
        except MalformedMessageError:
            return
        self.take(stored)

    def take(self, stored: FramesStored) -> None:
        """What a batcher says."""
        at_ms, rows = stored.stored_at_ns // NS_PER_MS - self._wall_ms, 0
        for host, tick_ms in stored.ticks_ms.items():
            course = self._courses.get(host)
            if course is None:
                continue
            first, newest = self._next[host], (tick_ms - course.first_ms) // TICK_MS
            for seq in range(first, newest + 1):
                if course.in_order(seq):
                    self._ms[at_ms - round(course.due_s(seq) * 1000)] += 1
                    rows += course.plan.vms
            self._next[host] = max(first, newest + 1)
        if rows:
            self._told(rows)

    def report(self) -> dict[str, Any]:
        """Percentiles in ms; empty if no batcher said anything."""
        latencies = Latencies()
        for lag_ms, frames in self._ms.items():
            latencies.record(lag_ms * _US_PER_MS, frames)
        return latencies.report()


@asynccontextmanager
async def heard(bus: Bus, lags: Lags) -> AsyncIterator[None]:
    """Hears while the block lasts."""
    subscription = await bus.subscribe(METRICS_STORED, lags.hear)
    await bus.client.flush()
    try:
        yield
    finally:
        if bus.connected:
            await subscription.unsubscribe()
