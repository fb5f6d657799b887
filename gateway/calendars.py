"""Where minutes, hours and days begin in a time zone: 23 and 25 hours long ones included."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from schemas.usage_windows import WindowUnit

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
_MINUTE_MS = 60_000
_HOUR_MS = 3_600_000


class UnknownZoneError(ValueError):
    """There is no time zone of that name."""


@lru_cache(maxsize=64)
def zone_of(name: str) -> ZoneInfo:
    """A time zone by its name in the IANA database.

    Raises:
        UnknownZoneError: There is none.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise UnknownZoneError(f"{name[:64]!r} is no time zone, such as Europe/Berlin") from error


def midnight(day: date, zone: ZoneInfo) -> datetime:
    """The first moment of a day; where clocks skip it, the moment at which they do."""
    return datetime.combine(day, time(), zone).astimezone(UTC).astimezone(zone)


def edges(
    start_ms: int, end_ms: int, unit: WindowUnit | None, zone: ZoneInfo, most: int
) -> list[int]:
    """Begins of windows that follow one another from `start_ms` on, and the last one's end.

    The first and the last may be shorter than the unit.

    Args:
        start_ms: Unix ms.
        end_ms: The same, later.
        unit: None for one window.
        zone: Whose minutes, hours and days.
        most: Windows at most; there are more if the last edge is not `end_ms`.
    """
    found = [start_ms]
    while found[-1] < end_ms and len(found) <= most:
        following = end_ms if unit is None else _after(found[-1], unit, zone)
        found.append(min(following, end_ms))
    return found


def at(ms: int, zone: ZoneInfo) -> datetime:
    """Unix ms as a moment in a zone."""
    return (_EPOCH + ms * _MS).astimezone(zone)


def _after(ms: int, unit: WindowUnit, zone: ZoneInfo) -> int:
    match unit:
        case WindowUnit.MINUTE:
            return (ms // _MINUTE_MS + 1) * _MINUTE_MS
        case WindowUnit.HOUR:
            return _next_hour(ms, zone)
        case WindowUnit.DAY:
            day = at(ms, zone).date()
            while True:
                day += timedelta(days=1)
                edge = (midnight(day, zone) - _EPOCH) // _MS
                if edge > ms:  # it is not where a day was left out, as in Samoa in 2011
                    return edge


def _next_hour(ms: int, zone: ZoneInfo) -> int:
    """The next whole hour on the wall's clock, or the moment at which that is set before it."""
    offset = _offset(ms, zone)
    edge = ((ms + offset) // _HOUR_MS + 1) * _HOUR_MS - offset
    if _offset(edge, zone) == offset:
        return edge
    low, high = ms // 1000, edge // 1000
    while high - low > 1:
        middle = (low + high) // 2
        if _offset(middle * 1000, zone) == offset:
            low = middle
        else:
            high = middle
    return high * 1000


def _offset(ms: int, zone: ZoneInfo) -> int:
    return (at(ms, zone).utcoffset() or timedelta(0)) // _MS
