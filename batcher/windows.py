"""Windows of time that can be answered exactly, given what the store still keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from schemas.usage import UsageQuery

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
_FOREVER_MS = 2**62
_MARGIN = timedelta(days=2)
"""How long before the store's begin its oldest rows may have been collected: the stream of
enriched frames keeps a day."""
_ROLLED_WITHIN = timedelta(minutes=1)
"""After this hours hold what any batcher has stored of them in time; it takes seconds."""


class RefusedQueryError(ValueError):
    """The question cannot be answered as it stands; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Retention:
    """What the store can still know.

    Attributes:
        born: When the store began.
        ticks: How long single ticks are kept.
        minutes: How long the rollup per minute is kept.
        hours: How long the rollup per hour is kept.
        days: How long the rollup per day is kept.
        known_since: Before this nothing is known although it would still be kept: the store is
            older than its rollups per hour and day, and its minutes from then had expired.
        hosts_known_since: Before this it is not known which host an incarnation ran on.
    """

    born: datetime
    ticks: timedelta
    minutes: timedelta
    hours: timedelta = timedelta(days=730)
    days: timedelta = timedelta(days=2555)
    known_since: datetime | None = None
    hosts_known_since: datetime | None = None

    def expired_before(self, kept: timedelta, now: datetime) -> datetime | None:
        """What lies before this may have expired; None while nothing can have."""
        return now - kept if now - self.born + _MARGIN > kept else None


@dataclass(frozen=True, slots=True)
class Window:
    """A half-open window in whole ms.

    Attributes:
        start: First tick inside.
        end: First tick after it.
        counted_from: Ticks of whole minutes are counted from here on.
        rolled_until: Hours and days are whole up to here, the begin of an hour; from there on
            minutes are read instead.
    """

    start: int
    end: int
    counted_from: int = 0
    rolled_until: int = _FOREVER_MS

    @classmethod
    def between(cls, start: datetime, end: datetime) -> Window:
        """The window of two instants; a tick at an instant counts as after it."""
        return cls(_ceil_ms(start), _ceil_ms(end))

    @property
    def bounds(self) -> Mapping[str, int]:
        """The query's parameters.

        Per level, from ticks to days: `first` and `end` are the level's whole units in the window,
        `start` the begin of the unit that `start` lies in, and `[a, b)` and `[c, d)` the two pieces
        that are read there, up to the next unit of the coarser level at either end. No hour or day
        is read that is not whole yet.
        """
        found = {"end": self.end}
        levels = (
            ("tick", 1, MINUTE_MS),
            ("minute", MINUTE_MS, HOUR_MS),
            ("hour", HOUR_MS, DAY_MS),
            ("day", DAY_MS, _FOREVER_MS),
        )
        for level, unit, coarser in levels:
            fine, coarse = self._until(unit), self._until(coarser)
            end = _floor(fine.end, unit)
            begun = _floor(coarse.start, coarser)
            head_end = max(begun, min(_ceil(fine.start, coarser), end))
            found |= {
                f"{level}_start": _floor(fine.start, unit),
                f"{level}_first": _ceil(fine.start, unit),
                f"{level}_end": end,
                f"{level}_a": begun,
                f"{level}_b": head_end,
                f"{level}_c": max(_floor(coarse.end, coarser), head_end),
                f"{level}_d": end,
            }
        first_minute = max(self.start, self.counted_from)
        return found | {"counted_from": _ceil(first_minute, MINUTE_MS)}

    def rolled(self, until_ms: int | None) -> Window:
        """The same, where hours are whole up to there at most; minutes that are gone cannot help.

        Args:
            until_ms: Unix ms; None if no hour is known not to be whole.
        """
        if until_ms is None:
            return self
        until = min(self.rolled_until, _floor(until_ms, HOUR_MS))
        return replace(self, rolled_until=max(until, _ceil(self.counted_from, HOUR_MS)))

    def _until(self, unit: int) -> Window:
        """The window as far as units of this length are whole."""
        if unit < HOUR_MS:
            return self
        return Window(min(self.start, self.rolled_until), min(self.end, self.rolled_until))


def check(query: UsageQuery, retention: Retention, now: datetime) -> Window:
    """The query's window, if it can be answered exactly.

    Raises:
        RefusedQueryError: It is empty, or reaches behind what is kept.
    """
    if query.end <= query.start:
        raise RefusedQueryError("end must be later than start")
    # While nothing can have expired, the store knows everything from the beginning of time.
    oldest = retention.expired_before(retention.days, now)
    if oldest and query.start < oldest:
        raise RefusedQueryError(
            f"usage is kept for {retention.days.days} days: start at "
            f"{oldest.isoformat(timespec='minutes')} or later"
        )
    if retention.known_since and query.start < retention.known_since:
        raise RefusedQueryError(
            "what was used before had expired when this store was updated: start at "
            f"{retention.known_since.isoformat(timespec='minutes')} or later"
        )
    window = Window.between(query.start, query.end)
    for name, instant in (("start", window.start), ("end", window.end)):
        _check_end(name, instant, retention, now)
    if counted_from := retention.expired_before(retention.minutes, now):
        window = replace(window, counted_from=_ceil_ms(counted_from))
    return window.rolled(_ceil_ms(now - _ROLLED_WITHIN))


def check_edges(edges: Iterable[int], retention: Retention, now: datetime) -> None:
    """Whether windows can begin and end there; Unix ms.

    Raises:
        RefusedQueryError: What one lies in is no longer known in pieces.
    """
    for edge in edges:
        _check_end("windows", edge, retention, now)


def _check_end(name: str, instant: int, retention: Retention, now: datetime) -> None:
    """Whether the begun day, hour and minute that an end lies in are still known in pieces."""
    for what, kept, unit, whole in (
        ("hours are", retention.hours, DAY_MS, "day (00:00 UTC)"),
        ("minutes are", retention.minutes, HOUR_MS, "hour"),
        ("single ticks are", retention.ticks, MINUTE_MS, "minute"),
    ):
        oldest = retention.expired_before(kept, now)
        begun = _floor(instant, unit)
        if oldest and begun != instant and begun < _ceil_ms(oldest):
            raise RefusedQueryError(
                f"{what} kept for {kept.days} days: give {name} as a whole {whole}"
            )


def _floor(ms: int, unit: int) -> int:
    return ms - ms % unit


def _ceil(ms: int, unit: int) -> int:
    return -(-ms // unit) * unit


def instant_of(ms: int) -> datetime:
    """Unix ms as an aware datetime."""
    return _EPOCH + timedelta(milliseconds=ms)


def _ceil_ms(instant: datetime) -> int:
    return -((_EPOCH - instant) // timedelta(milliseconds=1))
