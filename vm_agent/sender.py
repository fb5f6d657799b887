"""Frames to NATS: in order, each until it is acknowledged, on disk while NATS is away.

The order is: what lies in the spool, then what is in memory. A batch is published at once and
is done when every frame of it is acknowledged, so a retry reorders within a batch at most; the
ids make it harmless. What is not acknowledged when the agent stops goes to the spool and is
sent by the next run, under the ids of the run that made it.

That order is also why a frame can tell how far its host has come: see `vm_agent.completeness`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from runtime.errors import PoisonError, TransientError
from vm_agent.completeness import Completeness
from vm_agent.spool import Outgoing, Segment, Spool
from vm_agent.telemetry import Telemetry

_log = structlog.get_logger("decisec.sender")


class Outlet(Protocol):
    """Where frames go."""

    @property
    def connected(self) -> bool:
        """Whether it makes sense to send now."""

    async def publish(self, frame: Outgoing, complete_ms: int | None) -> None:
        """Return once the stream has the frame; TransientError if it does not get it in time.

        Args:
            frame: What to publish.
            complete_ms: What the host claims with it, if anything: see `HEADER_COMPLETE_MS`.
        """


class Sender:
    """Takes frames from the sampler without ever making it wait.

    Args:
        outlet: Where frames go.
        spool: Where they wait.
        telemetry: Counts frames.
        completeness: What the host may claim.
        on_acked: Called with each frame that has arrived.
        batch: Frames in flight at most.
        spool_after: Frames in memory at which an unreachable NATS makes them go to disk:
            2 s worth.
        max_in_memory: Bound for a disk that refuses too; the oldest frame goes beyond it.
        look_again_s: How long at most until NATS is tried again without a new frame.
    """

    def __init__(
        self,
        outlet: Outlet,
        spool: Spool,
        telemetry: Telemetry,
        completeness: Completeness,
        on_acked: Callable[[Outgoing], Awaitable[None]],
        *,
        batch: int = 32,
        spool_after: int = 20,
        max_in_memory: int = 1200,
        look_again_s: float = 0.5,
    ) -> None:
        self._outlet = outlet
        self._spool = spool
        self._telemetry = telemetry
        self._completeness = completeness
        self._on_acked = on_acked
        self._batch = batch
        self._spool_after = spool_after
        self._max_in_memory = max_in_memory
        self._look_again_s = look_again_s
        self._segment: Segment | None = None
        self._from_disk: deque[Outgoing] = deque()
        self._recent: deque[Outgoing] = deque()
        self._news = asyncio.Event()
        self._closing = False

    @property
    def waiting(self) -> int:
        """Frames that are not acknowledged yet."""
        loaded = self._segment.frames if self._segment else 0
        return self._spool.frames - loaded + len(self._from_disk) + len(self._recent)

    def offer(self, frame: Outgoing) -> None:
        """Queue a frame; never blocks."""
        self._recent.append(frame)
        if len(self._recent) > self._max_in_memory:
            self._recent.popleft()
            self._dropped(1)
        self._news.set()

    async def run(self) -> None:
        """Send until `close` was called and everything is sent, or until cancelled."""
        while True:
            self._news.clear()
            if self._outlet.connected and await self._send_batch():
                continue
            if len(self._recent) >= self._spool_after:
                await self._to_disk()
            if self._closing and not self.waiting:
                return
            await self._pause()

    def close(self) -> None:
        """Let `run` return once nothing waits any more."""
        self._closing = True
        self._news.set()

    async def put_away(self) -> bool:
        """Write what is not acknowledged to the spool; `run` must have ended.

        Returns:
            Whether no frame can still arrive but those that the spool holds.
        """
        self._from_disk.clear()  # its segment is still there
        self._segment = None
        if self._recent:
            await self._to_disk()
        if self._spool.frames:
            _log.warning("frames.left_in_spool", frames=self._spool.frames)
        return not self._recent and not self._completeness.doubtful

    async def _pause(self) -> None:
        try:
            # Reconnecting raises no event here, so look from time to time.
            async with asyncio.timeout(self._look_again_s):
                await self._news.wait()
        except TimeoutError:
            return

    async def _send_batch(self) -> bool:
        """Send one batch; False if there was none or some of it did not arrive."""
        if not self._from_disk and self._spool.frames:
            await self._load()
        source = self._from_disk or self._recent
        batch = [source[i] for i in range(min(self._batch, len(source)))]
        if not batch:
            return False
        # All that was made before this batch has arrived, unless it lies in the spool.
        claim = None if self._spool.frames else self._completeness.claim(batch[0].tick_ms)
        sends = [self._send(frame, None if number else claim) for number, frame in enumerate(batch)]
        results = await asyncio.gather(*sends)
        if claim is not None and results[0] is None:
            self._completeness.claimed(claim)
        for frame, delayed in zip(batch, results, strict=True):
            if delayed is not None:
                _log.warning("frames.delayed", waiting=self.waiting, error=str(delayed))
                return False
            # A full memory may have given up the frame in the meantime.
            if source and source[0] is frame:
                source.popleft()
            await self._on_acked(frame)
        if self._segment is not None and not self._from_disk:
            await asyncio.to_thread(self._spool.remove, self._segment)
            self._segment = None
        return True

    async def _send(self, frame: Outgoing, claim: int | None) -> TransientError | None:
        try:
            await self._outlet.publish(frame, claim)
        except TransientError as error:
            return error
        except PoisonError as error:
            # It will never be stored, and the ones behind it must not wait for that.
            _log.error("frame.refused", msg_id=frame.msg_id, error=str(error))
            self._telemetry.frames_dropped.add(1)
        else:
            self._telemetry.frames_published.add(1)
        return None

    async def _load(self) -> None:
        damaged = self._spool.damaged
        found = await asyncio.to_thread(self._spool.oldest)
        if self._spool.damaged > damaged:
            self._completeness.doubt()
        if found is not None:
            self._segment, frames = found
            self._from_disk.extend(frames)
            _log.info("segment.loaded", frames=len(frames), waiting=self.waiting)

    async def _to_disk(self) -> None:
        frames = list(self._recent)
        try:
            dropped = await asyncio.to_thread(self._spool.append, frames)
        except OSError as error:
            _log.error("spool.refused", error=str(error), frames=len(frames))
            return
        for frame in frames:
            if self._recent and self._recent[0] is frame:
                self._recent.popleft()
        self._telemetry.frames_spooled.add(len(frames))
        if self._segment is not None and not self._spool.holds(self._segment):
            self._segment = None
            self._from_disk.clear()
        if dropped:
            self._dropped(dropped)

    def _dropped(self, frames: int) -> None:
        self._telemetry.frames_dropped.add(frames)
        self._completeness.doubt()
        _log.error("frames.dropped", frames=frames, waiting=self.waiting)
