"""Sends a flood at its pace, and does wrong what the plan says."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from runtime.publisher import Publisher
from schemas.frames import encode_frame
from schemas.subjects import metrics_raw
from schemas.units import TICK_MS
from tests.load.flood.host import FloodHost
from tests.load.flood.plan import Plan

_OUTSTANDING = 2048
"""Messages on their way at most; a server that is slower than the plan slows the flood down."""
_REORDERED_BY = 3
_LATE_S = 10.0
_BURST_EVERY_S = 10.0
_BURST_HOLD_S = 1.0
_GIVE_UP_S = 120.0


@dataclass(frozen=True, slots=True)
class _Message:
    """One message; `rows` are samples that are not counted elsewhere."""

    subject: str
    payload: bytes
    msg_id: str
    rows: int

    def again(self) -> _Message:
        """The same under another id, so that the stream stores it twice."""
        return replace(self, msg_id=f"{self.msg_id}:again", rows=0)

    def spoiled(self) -> _Message:
        """Half of it."""
        half = self.payload[: len(self.payload) // 2]
        return replace(self, payload=half, msg_id=f"{self.msg_id}:rubbish", rows=0)


@dataclass(slots=True)
class Sent:
    """What has been sent so far.

    Attributes:
        frames: Each counted once, whatever was done to it.
        behind_ms: How late, by the plan, the latest frame left.
    """

    frames: int = 0
    samples: int = 0
    duplicates: int = 0
    reordered: int = 0
    late: int = 0
    rubbish: int = 0
    behind_ms: int = 0


class Sending:
    """One flood's messages.

    Args:
        publisher: To the bus.
        plan: What to do.
        told: Called with the number of samples of each frame that the stream has.
    """

    def __init__(self, publisher: Publisher, plan: Plan, told: Callable[[int], None]) -> None:
        self.sent = Sent()
        self._publisher = publisher
        self._plan = plan
        self._told = told
        self._room = asyncio.Semaphore(_OUTSTANDING)

    async def run(self, hosts: list[FloodHost]) -> None:
        """Send everything, and return once the stream has it.

        Raises:
            TransientError: It does not take a message for two minutes.
        """
        plan = self._plan
        begin_s = time.monotonic() + 0.2
        # Ticks end now at the latest, however fast they are sent: none is in the future.
        ahead_ms = max(0, plan.span_ms - round(plan.seconds * 1000))
        first_ms = (time.time_ns() // 10**6 - ahead_ms) // TICK_MS * TICK_MS
        async with asyncio.TaskGroup() as group:
            for number, host in enumerate(hosts):
                # Over the ramp, and within a tick: not all hosts at once.
                share = number / len(hosts)
                start_s = begin_s + share * max(plan.ramp_s, 1 / plan.hz)
                behind_ms = plan.skew_s * 1000 if number == 0 else 0
                group.create_task(
                    self._host(group, host, number, start_s, first_ms - behind_ms),
                    name=host.host_id,
                )

    async def _host(
        self, group: asyncio.TaskGroup, host: FloodHost, number: int, start_s: float, first_ms: int
    ) -> None:
        plan, sent = self._plan, self.sent
        fates = np.random.default_rng((plan.seed, number, 1))
        frames = host.frames(first_ms)
        held: deque[tuple[int, _Message]] = deque()
        for seq in range(plan.ticks):
            sent.behind_ms = max(sent.behind_ms, await _until(plan, start_s + seq / plan.hz))
            frame = next(frames)
            sent.frames += 1
            sent.samples += frame.rows
            message = _Message(
                metrics_raw(host.host_id), encode_frame(frame), frame.msg_id, frame.rows
            )
            late, duplicated, spoiled = fates.random(3)
            if late < plan.late:
                sent.late += 1
                await self._post(group, message, float(fates.uniform(0, _LATE_S)))
            elif late < plan.late + plan.reorder:
                sent.reordered += 1
                held.append((seq + _REORDERED_BY, message))
            else:
                await self._post(group, message)
            if duplicated < plan.duplicates:
                sent.duplicates += 1
                await self._post(group, message.again())
            if spoiled < plan.malformed:
                sent.rubbish += 1
                await self._post(group, message.spoiled())
            while held and (held[0][0] <= seq or seq == plan.ticks - 1):
                await self._post(group, held.popleft()[1])

    async def _post(
        self, group: asyncio.TaskGroup, message: _Message, delay_s: float = 0.0
    ) -> None:
        await self._room.acquire()
        group.create_task(self._deliver(message, delay_s), name=message.msg_id)

    async def _deliver(self, message: _Message, delay_s: float) -> None:
        try:
            if delay_s:
                await asyncio.sleep(delay_s)
            await self._publisher.publish(
                message.subject, message.payload, msg_id=message.msg_id, limit_s=_GIVE_UP_S
            )
            self._told(message.rows)
        finally:
            self._room.release()


async def _until(plan: Plan, due_s: float) -> int:
    """Wait for a moment, or for the end of the silence before a burst; ms that it is past."""
    if plan.burst and due_s % _BURST_EVERY_S > _BURST_EVERY_S - _BURST_HOLD_S:
        due_s += _BURST_EVERY_S - due_s % _BURST_EVERY_S
    wait_s = due_s - time.monotonic()
    if wait_s > 0:
        await asyncio.sleep(wait_s)
        return 0
    return round(-wait_s * 1000)
