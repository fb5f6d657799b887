"""How fast the batcher stores a backlog, beside the bare insert; and how small rows become."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from batcher.store import Store
from schemas.frames import EnrichedFrame
from tests.load.bench_batcher import frames, measure_batcher
from tests.load.bench_codecs import Host
from tests.load.metering.clock import ticks_until_now_ms
from tests.support.store import embedded_store, insert

_VMS = 1000
_ROWS_PER_S = 500_000
_MOST_ROWS = 2_000_000
_REPEATED_S = 10.0
"""A phase this long does everything three times, and takes the medians."""
_SIZED_VMS = 100
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
    """Bytes on disk after all merges, by column.

    `samples` and `usage_minute` for a host whose VMs mostly idle, some work steadily and some are
    busy (see `bench_codecs`); `all_busy` for VMs that use a random amount of CPU each tick.
    """
    count = max(600, round(seconds * 10))
    begin_ms = ticks_until_now_ms(count)
    mixed = Host(1, _SIZED_VMS, begin_ms)
    found = await _sizes(folder / "mixed", (mixed.frame(seq) for seq in range(count)), count)
    busy = await _sizes(folder / "busy", frames(_SIZED_VMS, count), count)
    return {"vms": _SIZED_VMS, "ticks": count, **found, "all_busy": busy["samples"]}


async def _sizes(folder: Path, some: Iterator[EnrichedFrame], count: int) -> dict[str, Any]:
    async with embedded_store(folder) as store:
        for name in _SIZED:
            # Small parts do not say what each column takes; those of a busy store are wide.
            await store.command(f"ALTER TABLE {name} MODIFY SETTING min_bytes_for_wide_part = 0")
        while batch := list(itertools.islice(some, _INSERTED)):
            await insert(store, batch)
        found = {name: await _size_of(store, name) for name in _SIZED}
    if found["samples"]["rows"] != _SIZED_VMS * count:
        raise RuntimeError(f"{found['samples']['rows']} rows of {_SIZED_VMS * count} are there")
    return found


async def _size_of(store: Store, name: str) -> dict[str, Any]:
    await store.command(f"OPTIMIZE TABLE {name} FINAL")
    columns = await store.query(
        "SELECT column, sum(column_data_compressed_bytes + column_marks_bytes)"
        " FROM system.parts_columns"
        " WHERE active AND database = currentDatabase() AND table = {t:String}"
        " GROUP BY column ORDER BY 2 DESC, 1",
        {"t": name},
    )
    [(rows, on_disk)] = await store.query(
        "SELECT sum(rows), sum(bytes_on_disk) FROM system.parts"
        " WHERE active AND database = currentDatabase() AND table = {t:String}",
        {"t": name},
    )
    return {
        "rows": rows,
        "bytes_on_disk": on_disk,
        "bytes_per_row": round(on_disk / rows, 2),
        "bytes_per_row_by_column": {column: round(size / rows, 3) for column, size in columns},
    }
