"""How fast the batcher stores a backlog, beside the bare insert; and how small rows become."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tests.load.bench_batcher import backlog, bare, frames
from tests.support.store import embedded_store, insert

_VMS = 1000
_FRAMES_PER_S = 600
"""About what two CPUs store in a second."""
_INSERTED = 200
_SIZED = ("samples", "usage_minute")


async def batcher(folder: Path, seconds: float) -> dict[str, Any]:
    """A backlog through a batcher process, and the same rows by bare inserts, right afterwards."""
    # Two flushes at least: the first one does not count.
    count = max(300, round(seconds * _FRAMES_PER_S))
    for name in ("backlog", "bare"):
        (folder / name).mkdir(parents=True)
    ours = await backlog(folder / "backlog", _VMS, count)
    plain = await bare(folder / "bare", _VMS, count)
    rows_per_s, bare_per_s = ours["rows_per_s"], plain["insert_rows_per_s"]
    return {
        "rows": ours["rows"],
        "rows_per_s": rows_per_s,
        "bare_insert_rows_per_s": bare_per_s,
        "ratio": round(rows_per_s / bare_per_s, 3),
        "backlog": ours,
        "bare": plain,
    }


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
