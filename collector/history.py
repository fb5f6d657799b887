"""The last accepted counters of each incarnation on one host, in arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from collector.checks import Before, Ints, Rows
from schemas.frames import MAX_ROWS
from schemas.vms import METERS

Where: TypeAlias = slice | Rows
"""Places in the arrays: a slice where they are neighbours, which costs no copy."""

_ROOM = 64
_MAX_PLACES = 4 * MAX_ROWS


class History:
    """Places for incarnations, keyed by VM id and incarnation as bytes.

    Bounded: when the places run out, incarnations not sampled within the late tolerance go,
    and beyond four full frames the ones sampled longest ago. One that comes back afterwards is
    new.

    Attributes:
        generation: Grows when places are given out anew: those given before are void then.
    """

    def __init__(self, late_tolerance_ms: int) -> None:
        self.generation = 0
        self._late_tolerance_ms = late_tolerance_ms
        self._places: dict[bytes, int] = {}
        self._newest_ms = 0
        self._tick_ms: Ints = np.full(_ROOM, -1, np.int64)
        self._run = np.zeros(_ROOM, np.int64)
        self._counters: Ints = np.zeros((len(METERS), _ROOM), np.int64)

    def __len__(self) -> int:
        return len(self._places)

    def place(self, keys: Sequence[bytes]) -> Where:
        """Places of these incarnations, in this order; new ones are given to new keys."""
        fresh = [key for key in keys if key not in self._places]
        if len(self._places) + len(fresh) > len(self._tick_ms):
            self._rearrange(keys)
        else:
            for key in fresh:
                self._places[key] = len(self._places)
        rows = np.fromiter((self._places[key] for key in keys), np.intp, len(keys))
        if len(rows) and (np.diff(rows) == 1).all():
            return slice(int(rows[0]), int(rows[-1]) + 1)
        return rows

    def ticks(self, where: Where) -> Ints:
        """Ticks of the last accepted readings in ms; -1 where there is none."""
        return self._tick_ms[where]

    def counters(self, where: Where) -> Ints:
        """The last accepted readings; zero where there is none."""
        return self._counters[:, where]

    def before(self, where: Where, run: int) -> Before:
        """All that `judge` asks about the last accepted readings."""
        return Before(self._tick_ms[where], self._run[where] == run, self._counters[:, where])

    def accept(self, where: Where, *, tick_ms: int, run: int, counters: Ints) -> None:
        """Take over newer readings."""
        self._tick_ms[where] = tick_ms
        self._run[where] = run
        self._counters[:, where] = counters
        self._newest_ms = max(self._newest_ms, tick_ms)

    def _rearrange(self, keys: Sequence[bytes]) -> None:
        """Put these first, drop what is old, make room for as many again."""
        places = dict.fromkeys(keys)
        horizon = self._newest_ms - self._late_tolerance_ms
        others = [
            key
            for key, place in self._places.items()
            if key not in places and self._tick_ms[place] >= horizon
        ]
        spare = max(0, _MAX_PLACES - len(places))
        if len(others) > spare:
            others.sort(key=lambda key: int(self._tick_ms[self._places[key]]), reverse=True)
            del others[spare:]
        order = [*places, *others]
        kept = np.fromiter((self._places.get(key, -1) for key in order), np.intp, len(order))
        known = np.flatnonzero(kept >= 0)
        room = max(_ROOM, 2 * len(order))
        tick_ms: Ints = np.full(room, -1, np.int64)
        run = np.zeros(room, np.int64)
        counters: Ints = np.zeros((len(METERS), room), np.int64)
        tick_ms[known] = self._tick_ms[kept[known]]
        run[known] = self._run[kept[known]]
        counters[:, known] = self._counters[:, kept[known]]
        self._tick_ms, self._run, self._counters = tick_ms, run, counters
        self._places = {key: place for place, key in enumerate(order)}
        self.generation += 1
