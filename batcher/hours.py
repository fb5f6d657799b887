"""Hours out of samples, as the view over minutes would make them, for inserts of their own.

Samples are inserted several times a second, and what they cost the rollups is a row per VM each
time. A minute is asked for at once; an hour or a day can wait some seconds and take the samples of
many inserts at a time. Every column is a maximum, or bits, so in how many pieces it comes changes
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from batcher.columns import array, codes_of, firsts, ids_of, months_of, numbers
from batcher.windows import HOUR_MS
from schemas.vms import METERS

TABLE = "usage_hour"
_APART = "hours_apart"


def apart(samples: pa.Table) -> pa.Table:
    """The samples with the word that whoever inserts them sees to their hours; see `hours`."""
    ones = np.ones(samples.num_rows, np.uint8)
    return samples.append_column(_APART, array(ones, pa.uint8()))


def hours(samples: pa.Table) -> pa.Table:
    """Rows for `usage_hour`, which feeds the days.

    Args:
        samples: At least one, as `batcher.batch.table` makes them. Those of a VM's hour are
            neighbours; were they not, there would be more rows and the same usage.
    """
    ticks = numbers(samples, "tick_ms")
    begun = ticks - ticks % HOUR_MS
    incarnations, codes = numbers(samples, "incarnation"), codes_of(samples, "customer_id")
    ids, months = ids_of(samples, "vm_id"), months_of(numbers(samples, "collected_at"))
    begins = firsts(ids, codes, incarnations, begun, months)

    def greatest(name: str) -> pa.Array[Any]:
        return array(np.maximum.reduceat(numbers(samples, name), begins), pa.int64())

    names: Any = samples.column("customer_id").combine_chunks()
    return pa.table(
        {
            "customer_id": pa.DictionaryArray.from_arrays(
                array(codes[begins], pa.int32()), names.dictionary
            ),
            "vm_id": array(ids[begins], pa.binary(16)),
            "incarnation": array(incarnations[begins], pa.uint32()),
            "hour_ms": array(begun[begins], pa.int64()),
            "collected_in": array(months[begins].astype(np.int32), pa.date32()),
            **{name: greatest(name) for name in METERS},
            "flags": array(np.bitwise_or.reduceat(numbers(samples, "flags"), begins), pa.uint8()),
            "last_tick_ms": greatest("tick_ms"),
        }
    )


def together(parts: Sequence[pa.Table]) -> pa.Table:
    """The hours of several batches as one table, for one insert.

    Args:
        parts: At least one, as `hours` makes them.
    """
    return pa.concat_tables(parts).unify_dictionaries().combine_chunks()
