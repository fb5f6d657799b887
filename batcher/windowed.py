"""What VMs used in each of many windows: the same figures as a query for each, by one query.

`counter(t)` at the end of a window is the greatest value before all windows and in those up to
there; a window's usage is by how much that grew in it. So the windows add up to the whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import NamedTuple
from uuid import UUID

from batcher.pieces import parameters
from batcher.store import Store
from batcher.usage import bounded
from batcher.windowed_sql import WINDOWED
from batcher.windows import RefusedQueryError, Retention, Window, check, check_edges, instant_of
from schemas.usage import UsageQuery
from schemas.vms import METERS

_FIRST_METER = 6


class Cell(NamedTuple):
    """One VM in one window.

    Attributes:
        mem_bytes: The greatest reading, where ticks were read; else 0.
        used: In the order of `METERS`.
    """

    incarnations: int
    flags: int
    samples: int
    mem_bytes: int
    used: tuple[int, ...]


Cells = Mapping[UUID, Mapping[int, Cell]]
"""By VM and number of the window; only where there was a sample."""


def windows_of(edges: Sequence[int], retention: Retention, now: datetime) -> Window:
    """All windows together, if each of them can be answered exactly.

    Args:
        edges: Unix ms: their begins, and the last one's end.
        retention: What the store keeps.
        now: The time.

    Raises:
        RefusedQueryError: They do not follow one another, or reach behind what is kept.
    """
    if any(begin >= end for begin, end in pairwise(edges)):
        raise RefusedQueryError("windows must follow one another")
    whole = UsageQuery(start=instant_of(edges[0]), end=instant_of(edges[-1]))
    window = check(whole, retention, now)
    check_edges(edges[1:-1], retention, now)
    return window


async def cells(
    store: Store,
    customer_id: str,
    vm_ids: Sequence[UUID],
    edges: Sequence[int],
    window: Window,
    *,
    limit_s: int,
) -> Cells:
    """What a customer's VMs used in each window.

    Args:
        store: Where to look.
        customer_id: Whose VMs; nobody else's are read.
        vm_ids: Only these; empty for all.
        edges: As `windows_of` passed them.
        window: As it gave it.
        limit_s: The engine gives up after this.

    Raises:
        RefusedQueryError: The answer would be too large.
        TransientError, FatalError: As `Store.query` does.
    """
    given = {"customer": customer_id, "vm_ids": list(vm_ids), **parameters(edges, window)}
    rows = await bounded(store, WINDOWED, given, limit_s=limit_s)
    lives: dict[tuple[UUID, int], dict[int, Sequence[object]]] = defaultdict(dict)
    for row in rows:
        lives[row[0], int(row[1])][int(row[2])] = row
    found: dict[UUID, dict[int, Cell]] = defaultdict(dict)
    for (vm_id, _), by_slot in lives.items():
        top = [0] * len(METERS)
        for slot in sorted(by_slot):
            row = by_slot[slot]
            seen = [int(str(value)) for value in row[_FIRST_METER:]]
            grown = [max(a, b) for a, b in zip(top, seen, strict=True)]
            if slot >= 0:
                used = tuple(a - b for a, b in zip(grown, top, strict=True))
                cell = Cell(1, int(str(row[3])), int(str(row[4])), int(str(row[5])), used)
                found[vm_id][slot] = merged(found[vm_id].get(slot), cell)
            top = grown
    return found


def merged(one: Cell | None, other: Cell) -> Cell:
    """Two incarnations, or two VMs, as one."""
    if one is None:
        return other
    return Cell(
        one.incarnations + other.incarnations,
        one.flags | other.flags,
        one.samples + other.samples,
        max(one.mem_bytes, other.mem_bytes),
        tuple(a + b for a, b in zip(one.used, other.used, strict=True)),
    )
