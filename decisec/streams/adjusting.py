"""Tells which hosts' usage may change by what an operator sends once more, before it is sent.

The first event about a host stands before the first of its frames goes out; later ones tell what
went out since, at growing distances, and the last ones at the end. So whatever becomes of the
command, it is on record which hosts a replay has touched.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from runtime.bus import Bus
from runtime.clock import utc_now
from runtime.errors import TransientError
from runtime.publisher import LIMIT_S, Publisher
from schemas.codec import encode
from schemas.events import AdjustmentCause, MeteringAdjusted
from schemas.frames import EnrichedFrame, Frame
from schemas.ids import new_id
from schemas.subjects import host_event

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_AFTER_S = 10.0
_MOST_AFTER_S = 3600.0


@dataclass(slots=True)
class _Untold:
    """Frames of a host of which no event tells yet."""

    first_ms: int
    last_ms: int
    frames: int = 0
    rows: int = 0


@dataclass(slots=True)
class _Turn:
    """When the next event about a host is due."""

    at_s: float
    after_s: float


class Telling:
    """Tells of the frames of one act.

    Args:
        bus: The connection.
        cause: Why they are sent.
        replay_id: Of the act, as in the audit.
        reason: As there.
        monotonic_s: The clock by which events are spread.
        limit_s: How long NATS is waited for.
    """

    def __init__(
        self,
        bus: Bus,
        cause: AdjustmentCause,
        replay_id: UUID,
        reason: str,
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
        limit_s: float = LIMIT_S,
    ) -> None:
        self._publisher = Publisher(bus)
        self._cause = cause
        self._replay_id = replay_id
        self._reason = reason
        self._monotonic_s = monotonic_s
        self._limit_s = limit_s
        self._untold: dict[str, _Untold] = {}
        self._turns: dict[str, _Turn] = {}

    async def ahead(self, frames: Iterable[Frame | EnrichedFrame]) -> None:
        """Call before frames are sent.

        Raises:
            TransientError: It could not be told; do not send them.
        """
        for frame in frames:
            if frame.rows:
                self._note(frame)
        now_s = self._monotonic_s()
        for host_id in list(self._untold):
            turn = self._turns.get(host_id)
            if turn is None:
                await self._tell_first(host_id)
                self._turns[host_id] = _Turn(now_s + _FIRST_AFTER_S, _FIRST_AFTER_S)
            elif turn.at_s <= now_s:
                await self._tell(host_id)
                turn.after_s = min(2 * turn.after_s, _MOST_AFTER_S)
                turn.at_s = now_s + turn.after_s

    async def rest(self) -> None:
        """Call at the end, however it came.

        Raises:
            TransientError: It could not be told.
        """
        for host_id in list(self._untold):
            await self._tell(host_id)

    async def _tell_first(self, host_id: str) -> None:
        try:
            await self._tell(host_id)
        except TransientError:
            # Nothing of this host was sent, nor will be.
            self._untold.pop(host_id, None)
            raise

    def _note(self, frame: Frame | EnrichedFrame) -> None:
        untold = self._untold.get(frame.host)
        if untold is None:
            untold = self._untold[frame.host] = _Untold(frame.tick_ms, frame.tick_ms)
        untold.first_ms = min(untold.first_ms, frame.tick_ms)
        untold.last_ms = max(untold.last_ms, frame.tick_ms)
        untold.frames += 1
        untold.rows += frame.rows

    async def _tell(self, host_id: str) -> None:
        untold = self._untold[host_id]
        now = utc_now()
        event = MeteringAdjusted(
            event_id=new_id(),
            at=now,
            host_id=host_id,
            lost_at=now,
            first_tick=_EPOCH + timedelta(milliseconds=untold.first_ms),
            last_tick=_EPOCH + timedelta(milliseconds=untold.last_ms),
            frames=untold.frames,
            rows=untold.rows,
            cause=self._cause,
            replay_id=str(self._replay_id),
            reason=self._reason,
            uncertain=True,
        )
        await self._publisher.publish(
            host_event(event), encode(event), msg_id=str(event.event_id), limit_s=self._limit_s
        )
        del self._untold[host_id]
