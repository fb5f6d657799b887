"""What counts although usage answers did not wait for it: late frames, and what is put back.

Late is what comes from a host that was declared lost and is older than the declaration, or, as long
as it stands, than a moment; and what is older than its end, should it come after that. What was
refused and is put back by an operator was never stored, so it is new. Answers that were complete
change by both; operators are told what has come. A frame is acknowledged only once an event tells
of it, so none goes untold, and many frames share an event.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import NAMESPACE_OID, uuid5

from collector.losses import FRESH_MS, Losses
from collector.messages import Now, Outcome
from runtime.consumer import Delivery
from schemas.events import AdjustmentCause, MeteringAdjusted
from schemas.replays import Retry
from schemas.units import NS_PER_MS

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)


class _Cause(NamedTuple):
    """What frames of one event have in common.

    Attributes:
        retry: The act that has put them back; None if they came late by themselves.
    """

    host_id: str
    retry: Retry | None = None


@dataclass(slots=True)
class Adjustment:
    """Frames of one host that came after usage answers may have passed them.

    Attributes:
        cause: Why they come now.
        lost_at: When the host was declared lost; None for what is put back.
        since_ns: When the first of them came.
        deliveries: To be acknowledged once the event stands.
    """

    cause: _Cause
    lost_at: datetime | None
    since_ns: int
    ticks_ms: list[int] = field(default_factory=list)
    rows: int = 0
    deliveries: list[Delivery] = field(default_factory=list)

    def event(self, at: datetime) -> MeteringAdjusted:
        """What there is to tell; the same frames have the same id."""
        host_id, retry = self.cause
        places = [delivery.sequence for delivery in self.deliveries]
        name = f"{host_id}:{min(places)}-{max(places)}:{len(places)}"
        if retry is not None:
            name += f":{retry.replay_id}"
        return MeteringAdjusted(
            event_id=uuid5(NAMESPACE_OID, f"decisec:metering_adjusted:{name}"),
            at=at,
            host_id=host_id,
            lost_at=self.lost_at or at,
            first_tick=_EPOCH + min(self.ticks_ms) * _MS,
            last_tick=_EPOCH + max(self.ticks_ms) * _MS,
            frames=len(self.ticks_ms),
            rows=self.rows,
            cause=AdjustmentCause.LATE if retry is None else AdjustmentCause.RETRY,
            replay_id=retry.replay_id if retry else "",
            reason=retry.reason if retry else "",
            uncertain=retry.uncertain if retry else False,
        )


class Adjustments:
    """Gathers such frames by host and cause, for a moment.

    Args:
        losses: The hosts that are lost, or were.
        hold_ns: How long frames may wait for others.
        most: Of one host; more are told of at once.
    """

    def __init__(self, losses: Losses, *, hold_ns: int, most: int) -> None:
        self._losses = losses
        self._hold_ns = hold_ns
        self._most = most
        self._held: dict[_Cause, Adjustment] = {}

    def hold(self, delivery: Delivery, outcome: Outcome, now: Now) -> bool:
        """Keep a frame that was passed on, if it is to be told of; false if there is no need."""
        if not outcome.samples:
            return False
        now_ms = now.wall_ns // NS_PER_MS
        if outcome.put_back is not None:
            host_id, tick_ms, retry = outcome.put_back
            if tick_ms >= now_ms - FRESH_MS:
                return False
            self._keep(_Cause(host_id, retry), None, tick_ms, delivery, outcome, now)
            return True
        if outcome.passed_on is None:
            return False
        host_id, tick_ms = outcome.passed_on
        passed = self._losses.passed(host_id, now_ms)
        if passed is None or tick_ms >= passed.until_ms:
            return False
        self._keep(_Cause(host_id), passed.lost_at, tick_ms, delivery, outcome, now)
        return True

    def due(self, now_ns: int) -> list[Adjustment]:
        """What is to be told now; it is no longer held."""
        found = [
            cause
            for cause, held in self._held.items()
            if now_ns - held.since_ns >= self._hold_ns or len(held.deliveries) >= self._most
        ]
        return [self._held.pop(cause) for cause in found]

    def rest(self) -> list[Adjustment]:
        """All that is held; it is no longer."""
        found, self._held = list(self._held.values()), {}
        return found

    def _keep(
        self,
        cause: _Cause,
        lost_at: datetime | None,
        tick_ms: int,
        delivery: Delivery,
        outcome: Outcome,
        now: Now,
    ) -> None:
        held = self._held.get(cause)
        if held is None:
            held = self._held[cause] = Adjustment(cause, lost_at, now.monotonic_ns)
        held.ticks_ms.append(tick_ms)
        held.rows += outcome.samples
        held.deliveries.append(delivery)
