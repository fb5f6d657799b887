"""Sends a flood at its pace, and does wrong what the plan says."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from runtime.bus import Bus
from schemas.frames import encode_frame
from schemas.subjects import metrics_raw
from schemas.units import TICK_MS
from tests.load.flood.host import FloodHost
from tests.load.flood.lags import Course
from tests.load.flood.plan import Plan
from tests.load.flood.posting import Letter, Post, posting

_REORDERED_BY = 3
_LATE_S = 10.0
_TOGETHER_S = 0.005
"""Hosts that are due within so much send together: one system call carries several frames."""


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
        bus: Where to.
        plan: What to do.
        told: Called with the number of samples of each frame that the stream has.
        planned: Called with each host's course, before anything is sent.
    """

    def __init__(
        self,
        bus: Bus,
        plan: Plan,
        told: Callable[[int], None],
        planned: Callable[[dict[str, Course]], None] = lambda _: None,
    ) -> None:
        self.sent = Sent()
        self._bus = bus
        self._plan = plan
        self._told = told
        self._planned = planned

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
        courses = {}
        for number, host in enumerate(hosts):
            # Over the ramp, and within a tick: not all hosts at once.
            offset_s = number / len(hosts) * max(plan.ramp_s, 1 / plan.hz)
            courses[host.host_id] = Course(
                plan,
                first_ms - (plan.skew_s * 1000 if number == 0 else 0),
                begin_s + offset_s // _TOGETHER_S * _TOGETHER_S,
                np.random.default_rng((plan.seed, number, 1)).random((plan.ticks, 4)),
            )
        self._planned(courses)
        async with posting(self._bus, self._told) as post, asyncio.TaskGroup() as group:
            for host in hosts:
                sender = _Sender(post, group, plan, self.sent)
                group.create_task(sender.run(host, courses[host.host_id]), name=host.host_id)


class _Sender:
    """Sends one host's frames."""

    def __init__(self, post: Post, group: asyncio.TaskGroup, plan: Plan, sent: Sent) -> None:
        self._post = post
        self._group = group
        self._plan = plan
        self._sent = sent

    async def run(self, host: FloodHost, course: Course) -> None:
        """All of them, each at its time."""
        plan, sent, post = self._plan, self._sent, self._post
        frames = host.frames(course.first_ms)
        subject = metrics_raw(host.host_id)
        held: deque[tuple[int, Letter]] = deque()
        for seq, fate in enumerate(course.fates):
            late, duplicated, spoiled, delay = fate.tolist()
            sent.behind_ms = max(sent.behind_ms, await _until(course.due_s(seq)))
            frame = next(frames)
            sent.frames += 1
            sent.samples += frame.rows
            letter = Letter(subject, encode_frame(frame), frame.msg_id, frame.rows)
            if late < plan.late:
                sent.late += 1
                self._group.create_task(self._later(letter, delay * _LATE_S), name=letter.msg_id)
            elif late < plan.late + plan.reorder:
                sent.reordered += 1
                held.append((seq + _REORDERED_BY, letter))
            else:
                await post.send(letter)
            if duplicated < plan.duplicates:
                sent.duplicates += 1
                # Under another id, so that the stream stores it twice.
                await post.send(replace(letter, msg_id=f"{letter.msg_id}:again", rows=0))
            if spoiled < plan.malformed:
                sent.rubbish += 1
                half = letter.payload[: len(letter.payload) // 2]
                await post.send(
                    replace(letter, payload=half, msg_id=f"{letter.msg_id}:rubbish", rows=0)
                )
            while held and (held[0][0] <= seq or seq == plan.ticks - 1):
                await post.send(held.popleft()[1])

    async def _later(self, letter: Letter, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        await self._post.send(letter)


async def _until(due_s: float) -> int:
    """Wait for a moment; ms that it is past."""
    wait_s = due_s - time.monotonic()
    if wait_s > 0:
        await asyncio.sleep(wait_s)
        return 0
    return round(-wait_s * 1000)
