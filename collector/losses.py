"""Which hosts are lost, or were: what of theirs may come after usage answers had passed it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import NAMESPACE_OID, UUID, uuid5

from schemas.events import HostFound, HostLost
from schemas.hosts import HostLoss

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
FRESH_MS = 10_000
"""No usage answer has passed a tick that is younger: `complete_until` is 30 s ago at most, and what
was collected is stored within the rest."""

_REMEMBERED = timedelta(days=1)
"""For so long it is told again that a host was found, to whoever may have missed it."""


class Passed(NamedTuple):
    """Usage answers may have passed the ticks of a host without waiting for them.

    Attributes:
        lost_at: When it was declared lost; when it was found if that is no longer known.
        until_ms: The first tick that they have not passed, Unix ms.
    """

    lost_at: datetime
    until_ms: int


class _Found(NamedTuple):
    at: datetime
    lost_at: datetime


class Losses:
    """What the bucket `lost_hosts` says and said, fed by a mirror of it.

    Attributes:
        standing: The hosts that are lost now. Read only.
    """

    def __init__(self) -> None:
        self.standing: dict[str, HostLoss] = {}
        self._lost_at: dict[str, datetime] = {}
        self._found: dict[str, _Found] = {}

    def change(self, host_id: str, loss: HostLoss | None) -> None:
        """Take over a change of the bucket; None for a host that is lost no longer."""
        if loss is None:
            self.standing.pop(host_id, None)
        else:
            self.standing[host_id] = loss
            self._lost_at[host_id] = loss.declared_at

    def removed(self, host_id: str, at: datetime) -> None:
        """Note when a host was found, by the server's clock."""
        self._found[host_id] = _Found(at, self._lost_at.get(host_id, at))

    def passed(self, host_id: str, now_ms: int) -> Passed | None:
        """What answers may have passed of a host; None for one that never was lost.

        Args:
            host_id: Which.
            now_ms: The wall's time.
        """
        loss = self.standing.get(host_id)
        if loss is not None:
            declared_ms = _ms(loss.declared_at)
            return Passed(loss.declared_at, max(declared_ms, now_ms - FRESH_MS))
        found = self._found.get(host_id)
        return Passed(found.lost_at, _ms(found.at) - FRESH_MS) if found else None

    def facts(self, now: datetime) -> list[HostLost | HostFound]:
        """What is to be told of hosts; the same fact has the same id and time, whoever tells it."""
        lost = [lost_fact(loss) for loss in self.standing.values()]
        found = [
            HostFound(
                event_id=_event_id(f"host_found:{host_id}:{one.at.isoformat()}"),
                at=one.at,
                host_id=host_id,
            )
            for host_id, one in self._found.items()
            if host_id not in self.standing and now - one.at < _REMEMBERED
        ]
        return [*lost, *found]


def lost_fact(loss: HostLoss) -> HostLost:
    """What there is to tell of a declaration."""
    name = f"host_lost:{loss.host_id}:{loss.declared_at.isoformat()}:{loss.requested_by}"
    return HostLost(
        event_id=_event_id(name),
        at=loss.declared_at,
        host_id=loss.host_id,
        reason=loss.reason,
        requested_by=loss.requested_by,
        automatic=loss.automatic,
    )


def _event_id(name: str) -> UUID:
    return uuid5(NAMESPACE_OID, f"decisec:{name}")


def _ms(instant: datetime) -> int:
    return (instant - _EPOCH) // _MS
