"""What is missing, or came after nobody waited for it any more, from the events of hosts."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import msgspec

from decisec.streams.reading import records, resolve
from decisec.streams.selection import Selection
from runtime.bus import Bus
from schemas.errors import MalformedMessageError
from schemas.events import (
    AdjustmentCause,
    GapClosed,
    GapOpened,
    HostEvent,
    HostFound,
    HostHeard,
    HostLost,
    HostSilent,
    HostSuspected,
    MeteringAdjusted,
    decode_host_event,
)
from schemas.subjects import HOST_EVENTS


class Gap(msgspec.Struct, frozen=True, kw_only=True, tag="gap", tag_field="kind"):
    """Frames `seq_first..seq_last` of a run did not come in order.

    Attributes:
        opened_at: None if that event is older than the stream keeps.
        closed_at: When the last of them had come after all; None if some are missing.
    """

    host: str
    run_id: UUID
    seq_first: int
    seq_last: int
    frames: int
    opened_at: datetime | None
    closed_at: datetime | None

    @property
    def begin(self) -> datetime | None:
        """When it was first heard of."""
        return self.opened_at or self.closed_at

    @property
    def open(self) -> bool:
        """Whether frames are missing."""
        return self.closed_at is None


class Silence(msgspec.Struct, frozen=True, kw_only=True, tag="silence", tag_field="kind"):
    """A host sent no frame.

    Attributes:
        level: `suspected` (a second or more) or `silent` (ten or more).
        since: When that was said first; None if that event is older than the stream keeps.
        heard_at: When a frame came again; None if none has.
        silent_ms: How long no frame had come then.
    """

    host: str
    level: str
    since: datetime | None
    heard_at: datetime | None
    silent_ms: int | None = None

    @property
    def begin(self) -> datetime | None:
        """When it was first heard of."""
        return self.since or self.heard_at

    @property
    def open(self) -> bool:
        """Whether the host is still silent."""
        return self.heard_at is None


class Adjustment(msgspec.Struct, frozen=True, kw_only=True, tag="adjustment", tag_field="kind"):
    """Rows of a host count that usage answers did not wait for.

    Attributes:
        lost_at: When the host was declared lost; None for what was put back or replayed.
        at: When the frames had come, or were sent.
        first_tick: Of the oldest of them.
        last_tick: Of the newest.
        rows: Samples in them.
        cause: `late` (from a host that was declared lost), `retry` (had been refused, and was put
            back), `replay` (was sent once more), or a word of a newer version.
        replay_id: Of the retry or replay, as in the audit.
        reason: Why it was made.
        uncertain: Whether any row is new is not known.
    """

    host: str
    lost_at: datetime | None
    at: datetime
    first_tick: datetime
    last_tick: datetime
    frames: int
    rows: int
    cause: str = AdjustmentCause.LATE
    replay_id: str = ""
    reason: str = ""
    uncertain: bool = False

    @property
    def begin(self) -> datetime:
        """When it was first heard of."""
        return self.at

    @property
    def open(self) -> bool:
        """Nothing is missing by it."""
        return False


class Loss(msgspec.Struct, frozen=True, kw_only=True, tag="loss", tag_field="kind"):
    """A host was declared lost: usage answers do not wait for it.

    Attributes:
        lost_at: None if that event is older than the stream keeps.
        found_at: When they waited for it again; None if they do not.
        automatic: A collector declared it, after the configured time.
    """

    host: str
    lost_at: datetime | None
    found_at: datetime | None
    reason: str = ""
    requested_by: str = ""
    automatic: bool = False

    @property
    def begin(self) -> datetime | None:
        """When it was first heard of."""
        return self.lost_at or self.found_at

    @property
    def open(self) -> bool:
        """Whether the host is still lost."""
        return self.found_at is None


Item = Gap | Silence | Adjustment | Loss


class Ledger:
    """Takes events in their order, and knows what is missing after each."""

    def __init__(self) -> None:
        self._gaps: dict[tuple[str, UUID, int, int], Gap] = {}
        self._silences: dict[str, list[Silence]] = {}
        self._adjustments: dict[UUID, Adjustment] = {}
        self._losses: dict[str, list[Loss]] = {}

    def take(self, event: HostEvent) -> Item | None:
        """Take one; what has changed by it, if anything has."""
        match event:
            case GapOpened() | GapClosed():
                return self._gap(event)
            case HostSuspected() | HostSilent():
                return self._quiet(event)
            case HostHeard():
                return self._heard(event)
            case HostLost():
                return self._lost(event)
            case HostFound():
                return self._found(event)
            case MeteringAdjusted():
                return self._adjusted(event)
            case _:
                return None

    def all(self, *, only_open: bool = False) -> list[Item]:
        """Everything, by the time at which it was first heard of."""
        silences = [one for several in self._silences.values() for one in several]
        losses = [one for several in self._losses.values() for one in several]
        found: list[Item] = [*self._gaps.values(), *silences, *self._adjustments.values(), *losses]
        wanted = [one for one in found if one.open or not only_open]
        return sorted(wanted, key=lambda one: (one.begin.timestamp() if one.begin else 0, one.host))

    def _gap(self, event: GapOpened | GapClosed) -> Gap | None:
        key = (event.host_id, event.run_id, event.seq_first, event.seq_last)
        known = self._gaps.get(key)
        opens = isinstance(event, GapOpened)
        if known is not None and (opens or known.closed_at is not None):
            return None  # said twice
        self._gaps[key] = Gap(
            host=event.host_id,
            run_id=event.run_id,
            seq_first=event.seq_first,
            seq_last=event.seq_last,
            frames=event.seq_last - event.seq_first + 1,
            opened_at=event.at if opens else (known.opened_at if known else None),
            closed_at=None if opens else event.at,
        )
        return self._gaps[key]

    def _quiet(self, event: HostSuspected | HostSilent) -> Silence | None:
        level = "silent" if isinstance(event, HostSilent) else "suspected"
        several = self._silences.setdefault(event.host_id, [])
        if several and several[-1].open:
            if several[-1].level == level:
                return None
            several[-1] = msgspec.structs.replace(several[-1], level=level)
        else:
            several.append(Silence(host=event.host_id, level=level, since=event.at, heard_at=None))
        return several[-1]

    def _heard(self, event: HostHeard) -> Silence | None:
        several = self._silences.setdefault(event.host_id, [])
        if not several:
            several.append(
                Silence(host=event.host_id, level="suspected", since=None, heard_at=None)
            )
        elif not several[-1].open:
            return None
        several[-1] = msgspec.structs.replace(
            several[-1], heard_at=event.at, silent_ms=event.silent_ms
        )
        return several[-1]

    def _lost(self, event: HostLost) -> Loss | None:
        one = Loss(
            host=event.host_id,
            lost_at=event.at,
            found_at=None,
            reason=event.reason,
            requested_by=event.requested_by,
            automatic=event.automatic,
        )
        several = self._losses.setdefault(event.host_id, [])
        for place, known in enumerate(several):
            if known.lost_at != event.at:
                continue
            if not known.open or known == one:
                return None  # said again
            # An operator's word takes the place of a collector's.
            several[place] = one
            return one
        several.append(one)
        return one

    def _found(self, event: HostFound) -> Loss | None:
        several = self._losses.setdefault(event.host_id, [])
        if any(known.found_at == event.at for known in several):
            return None
        if several and several[-1].open:
            several[-1] = msgspec.structs.replace(several[-1], found_at=event.at)
        else:
            several.append(Loss(host=event.host_id, lost_at=None, found_at=event.at))
        return several[-1]

    def _adjusted(self, event: MeteringAdjusted) -> Adjustment | None:
        if event.event_id in self._adjustments:
            return None
        self._adjustments[event.event_id] = one = Adjustment(
            host=event.host_id,
            lost_at=event.lost_at if event.cause == AdjustmentCause.LATE else None,
            at=event.at,
            first_tick=event.first_tick,
            last_tick=event.last_tick,
            frames=event.frames,
            rows=event.rows,
            cause=event.cause,
            replay_id=event.replay_id,
            reason=event.reason,
            uncertain=event.uncertain,
        )
        return one


async def read_ledger(bus: Bus, selection: Selection) -> Ledger:
    """What the stream of host events says at the moment.

    Raises:
        FatalError: There is no such stream.
        TransientError: The server did not answer.
    """
    ledger = Ledger()
    stretch = await resolve(bus, HOST_EVENTS, None, None)
    async for batch in records(bus, HOST_EVENTS, stretch, selection.filters(HOST_EVENTS)):
        for record in batch:
            try:
                ledger.take(decode_host_event(record.data))
            except MalformedMessageError:
                continue  # of a newer version
    return ledger
