"""What records say of the rows of a frame, and what operators have corrected of that.

Region is not among it: a frame has one, and the batcher parts a frame whose rows have several.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from runtime.corrections import FOREVER_MS, CorrectionIndex
from schemas.vms import VmRecord


class Said(NamedTuple):
    """Row by row what stands beside the counters, for ticks from `from_ms` to before `until_ms`."""

    customers: list[str]
    pools: list[str]
    price_plans: list[str]
    from_ms: int
    until_ms: int


def correct(
    keys: Sequence[bytes], records: Sequence[VmRecord], tick_ms: int, corrections: CorrectionIndex
) -> Said:
    """What holds for the rows of a frame at its tick.

    Args:
        keys: Of each row: VM id and incarnation, as they stand in a frame.
        records: Of each row.
        tick_ms: The frame's.
        corrections: What is known of them.
    """
    customers = [record.customer_id for record in records]
    pools = [record.pool for record in records]
    price_plans = [record.price_plan for record in records]
    begin, end = -FOREVER_MS, FOREVER_MS
    if len(corrections):
        for row, key in enumerate(keys):
            found = corrections.get(key[:16])
            if found is None:
                continue
            customers[row] = found.owner(int.from_bytes(key[16:], "little")) or customers[row]
            span = found.words_at(tick_ms)
            pools[row] = span.value.pool or pools[row]
            price_plans[row] = span.value.price_plan or price_plans[row]
            begin, end = max(begin, span.begin), min(end, span.end)
    return Said(customers, pools, price_plans, begin, end)
