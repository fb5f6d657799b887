"""Ranges of a stream as people write them: a sequence, a time, or how long ago."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

Bound: TypeAlias = int | datetime
"""A stream sequence, or a time at which messages were stored."""

_AGO = re.compile(r"-(\d{1,9}(?:\.\d{1,3})?)(ms|s|m|h|d)", re.ASCII)
_SEQUENCE = re.compile(r"\d{1,19}", re.ASCII)
_UNITS = {
    "ms": timedelta(milliseconds=1),
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
}


def parse_bound(text: str, now: datetime) -> Bound:
    """Read one end of a range.

    Args:
        text: `17` is a sequence, `-2h` (ms, s, m, h, d) is so long before `now`, anything else is
            a time as RFC 3339 has it; one without offset is in UTC.
        now: What ago is measured from.

    Raises:
        ValueError: With a sentence; it is none of these.
    """
    if _SEQUENCE.fullmatch(text):
        return int(text)
    if found := _AGO.fullmatch(text):
        try:
            return now - float(found[1]) * _UNITS[found[2]]
        except OverflowError:
            raise ValueError(f"{text!r} lies before all time") from None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"{text[:40]!r} is no sequence such as 17, no time such as 2026-01-31T12:00:00Z, "
            "and no time ago such as -2h"
        ) from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)
