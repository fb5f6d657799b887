"""Which rollup is read for which part of many windows that follow one another.

What lies before the windows is read as coarsely as it can be; what lies inside as coarsely as no
edge between two windows cuts a row, so that each row belongs to one window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from batcher.windows import DAY_MS, HOUR_MS, MINUTE_MS, Window

LEVELS: Mapping[str, int] = {"tick": 1, "minute": MINUTE_MS, "hour": HOUR_MS, "day": DAY_MS}
"""Length of a row's time by the level that it is of, finest first."""

Piece = tuple[int, int]
"""From there to there, Unix ms."""
_NOTHING: Piece = (0, 0)


def coarsest(edges: Sequence[int]) -> int:
    """Length of the longest rows that no edge within cuts."""
    within = edges[1:-1]
    return max(unit for unit in LEVELS.values() if all(edge % unit == 0 for edge in within))


def cover(low: int, high: int, longest: int, rolled_until: int) -> dict[str, list[Piece]]:
    """`[low, high)` in pieces by level, each made of whole rows.

    Args:
        low: Unix ms.
        high: Likewise.
        longest: No rows longer than this.
        rolled_until: No hours or days from here on.
    """
    pieces: dict[str, list[Piece]] = {level: [] for level in LEVELS}
    levels = [(level, unit) for level, unit in LEVELS.items() if unit <= longest]
    for (level, _), (_, coarser) in pairwise(levels):
        whole = min(high, rolled_until) if coarser >= HOUR_MS else high
        begun = min(-(-low // coarser) * coarser, high)
        rest = max(begun, whole - whole % coarser)
        pieces[level] += [piece for piece in ((low, begun), (rest, high)) if piece[0] < piece[1]]
        low, high = begun, rest
    if low < high:
        pieces[levels[-1][0]].append((low, high))
    return pieces


def parameters(edges: Sequence[int], window: Window) -> dict[str, object]:
    """The query's parameters.

    Args:
        edges: The windows' begins, and the last one's end; Unix ms.
        window: All of them together, as `check` passed it.
    """
    start, end = edges[0], edges[-1]
    unit = coarsest(edges)
    before = cover(0, start, DAY_MS, window.rolled_until)
    inside = cover(start, end, unit, window.rolled_until)
    found: dict[str, object] = {"start": start, "edges": list(edges[:-1])}
    for level in LEVELS:
        places = [*(before[level] or [_NOTHING])[:1], *inside[level], _NOTHING, _NOTHING]
        for number, (begin, stop) in enumerate(places[:3]):
            found |= {f"{level}_a{number}": begin, f"{level}_b{number}": stop}
    # Ticks of whole minutes are counted by the minutes' own bits.
    first = -(-max(start, window.counted_from) // MINUTE_MS) * MINUTE_MS
    last = end - end % MINUTE_MS
    if unit < MINUTE_MS:
        first = last = 0
    return found | {"counted_a": first, "counted_b": last}
