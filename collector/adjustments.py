"""What comes late from hosts that were declared lost: usage answers did not wait for it.

That is what is older than the declaration, or, as long as it stands, than a moment; and what is
older than its end, should it come after that. It counts all the same, so answers that were
complete change; operators are told what has come. A frame is acknowledged only once an event tells
of it, so none goes untold, and many frames share an event.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import NAMESPACE_OID, uuid5

from collector.losses import Losses
from collector.messages import Now, Outcome
from runtime.consumer import Delivery
from schemas.events import MeteringAdjusted
from schemas.units import NS_PER_MS

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)


@dataclass(slots=True)
class Late:
    """Frames of one host that came after usage answers may have passed them.

    Attributes:
        lost_at: When the host was declared lost.
        since_ns: When the first of them came.
        deliveries: To be acknowledged once the event stands.
    """

    host_id: str
    lost_at: datetime
    since_ns: int
    ticks_ms: list[int] = field(default_factory=list)
    rows: int = 0
    deliveries: list[Delivery] = field(default_factory=list)

    def event(self, at: datetime) -> MeteringAdjusted:
        """What there is to tell; the same frames have the same id."""
        places = [delivery.sequence for delivery in self.deliveries]
        name = f"{self.host_id}:{min(places)}-{max(places)}:{len(places)}"
        return MeteringAdjusted(
            event_id=uuid5(NAMESPACE_OID, f"decisec:metering_adjusted:{name}"),
            at=at,
            host_id=self.host_id,
            lost_at=self.lost_at,
            first_tick=_EPOCH + min(self.ticks_ms) * _MS,
            last_tick=_EPOCH + max(self.ticks_ms) * _MS,
            frames=len(self.ticks_ms),
            rows=self.rows,
        )


class Adjustments:
    """Gathers late frames by host, for a moment.

    Args:
        losses: The hosts that are lost, or were.
        hold_ns: How long frames may wait for others.
        most: Of one host; more are told of at once.
    """

    def __init__(self, losses: Losses, *, hold_ns: int, most: int) -> None:
        self._losses = losses
        self._hold_ns = hold_ns
        self._most = most
        self._late: dict[str, Late] = {}

    def hold(self, delivery: Delivery, outcome: Outcome, now: Now) -> bool:
        """Keep a frame that was passed on, if it is late; false if there is nothing to tell."""
        if outcome.passed_on is None or not outcome.samples:
            return False
        host_id, tick_ms = outcome.passed_on
        passed = self._losses.passed(host_id, now.wall_ns // NS_PER_MS)
        if passed is None or tick_ms >= passed.until_ms:
            return False
        late = self._late.get(host_id)
        if late is None:
            late = self._late[host_id] = Late(host_id, passed.lost_at, now.monotonic_ns)
        late.ticks_ms.append(tick_ms)
        late.rows += outcome.samples
        late.deliveries.append(delivery)
        return True

    def due(self, now_ns: int) -> list[Late]:
        """What is to be told now; it is no longer held."""
        found = [
            host_id
            for host_id, late in self._late.items()
            if now_ns - late.since_ns >= self._hold_ns or len(late.deliveries) >= self._most
        ]
        return [self._late.pop(host_id) for host_id in found]

    def rest(self) -> list[Late]:
        """All that is held; it is no longer."""
        found, self._late = list(self._late.values()), {}
        return found
