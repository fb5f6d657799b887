"""Routes that will go: `opt={**deprecated(...)}` on a handler says since when, and until when."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from email.utils import format_datetime
from typing import Any

DEPRECATED = "deprecated"
"""Key in a handler's `opt`."""

NOTICE = timedelta(days=180)
"""At least so long a route stays after it was deprecated."""


@dataclass(frozen=True, slots=True)
class Deprecation:
    """What the answers of a deprecated route carry.

    Attributes:
        headers: `Deprecation` (RFC 9745), `Sunset` (RFC 8594) and a link that says what to use.
    """

    since: date
    sunset: date
    link: str
    headers: tuple[tuple[bytes, bytes], ...]


def deprecated(*, since: date, sunset: date, link: str) -> dict[str, Any]:
    """For a handler's `opt`.

    Args:
        since: From this day on, UTC.
        sunset: Not before this day, UTC, is it taken away.
        link: Where to read what to use instead.

    Raises:
        ValueError: The notice is shorter than the policy allows.
    """
    if sunset - since < NOTICE:
        raise ValueError(f"a route stays at least {NOTICE.days} days after its deprecation")
    begin = datetime.combine(since, time(), UTC)
    end = datetime.combine(sunset, time(), UTC)
    headers = (
        (b"deprecation", f"@{begin.timestamp():.0f}".encode()),
        (b"sunset", format_datetime(end, usegmt=True).encode()),
        (b"link", f'<{link}>; rel="deprecation"'.encode()),
    )
    return {DEPRECATED: Deprecation(since, sunset, link, headers)}
