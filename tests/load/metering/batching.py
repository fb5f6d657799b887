"""How fast the batcher stores a backlog, beside the bare insert; and how small rows become."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.load.bench_batcher import frames, measure_batcher
from tests.support.store import embedded_store, insert

_VMS = 1000
_ROWS_PER_S = 500_000
_MOST_ROWS = 2_000_000
_REPEATED_S = 10.0
"""A phase this long does everything three times, and takes the medians."""
_INSERTED = 200
_SIZED = ("samples", "usage_minute")


async def batcher(seconds: float) -> dict[str, Any]:
    """A backlog through a batcher process, and the same rows by bare inserts, by turns."""
    # Two flushes at least: the first one does not count.
    rows = min(_MOST_ROWS, max(500 * _VMS, round(seconds * _ROWS_PER_S)))
    rounds = 3 if seconds >= _REPEATED_S else 1
    found = await measure_batcher(vms_per_frame=_VMS, rows=rows, rounds=rounds)
    return {**asdict(found), "rounds": rounds}


async def size(folder: Path, seconds: float) -> dict[str, Any]:
    """Bytes on disk after all merges, by column: a host of busy and idle VMs for so long."""
    vms, count = 100, max(600, round(seconds * 10))
    some = list(frames(vms, count))
    out: dict[str, Any] = {"vms": vms, "ticks": count}
    async with embedded_store(folder / "size") as store:
        for name in _SIZED:
            # Small parts do not say what each column takes; those of a busy store are wide.
            await store.command(f"ALTER TABLE {name} MODIFY SETTING min_bytes_for_wide_part = 0")
        for first in range(0, count, _INSERTED):
            await insert(store, some[first : first + _INSERTED])
        began_s = time.monotonic()
        for name in _SIZED:
            await store.command(f"OPTIMIZE TABLE {name} FINAL")
            columns = await store.query(
                "SELECT column, sum(column_data_compressed_bytes + column_marks_bytes),"
                " sum(column_data_uncompressed_bytes) FROM system.parts_columns"
                " WHERE active AND database = currentDatabase() AND table = {t:String}"
                " GROUP BY column ORDER BY 2 DESC, 1",
                {"t": name},
            )
            [(rows, on_disk)] = await store.query(
                "SELECT sum(rows), sum(bytes_on_disk) FROM system.parts"
                " WHERE active AND database = currentDatabase() AND table = {t:String}",
                {"t": name},
            )
            out[name] = {
                "rows": rows,
                "bytes_on_disk": on_disk,
                "bytes_per_row": round(on_disk / rows, 2),
                "bytes_per_row_by_column": {
                    column: round(packed / rows, 3) for column, packed, _ in columns
                },
                "packed_to": round(
                    sum(p for _, p, _ in columns) / sum(plain for _, _, plain in columns), 3
                ),
            }
        out["merged_in_s"] = round(time.monotonic() - began_s, 1)
    if out["samples"]["rows"] != vms * count:
        raise RuntimeError(f"{out['samples']['rows']} rows of {vms * count} are there")
    return out
