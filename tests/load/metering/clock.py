"""Ticks in the recent past."""

from __future__ import annotations

import time

from schemas.units import NS_PER_MS, TICK_MS


def ticks_until_now_ms(count: int) -> int:
    """The first of so many ticks of which the last one is now."""
    return time.time_ns() // NS_PER_MS // TICK_MS * TICK_MS - (count - 1) * TICK_MS
