"""The embedded store: a table encoded ahead arrives as the table itself does."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from pathlib import Path

import pytest

from batcher.batch import table
from batcher.priorities import let_merges_wait
from batcher.settings import BatcherSettings
from batcher.store import Encoded, Store
from runtime.errors import FatalError
from schemas.ids import new_id
from schemas.vms import METERS
from tests.support.store import DAY_NS, Reading, embedded_store, enriched

TICK_MS = time.time_ns() // 10**8 * 100


async def test_an_encoded_table_arrives_as_it_is(tmp_path: Path) -> None:
    """All columns and rows; the same token stores neither form a second time."""
    readings = [
        Reading(new_id(), TICK_MS, counters=dict.fromkeys(METERS, n), customer=f"c{n % 3}")
        for n in range(10)
    ]
    rows = table([enriched(readings)], now_ns=time.time_ns(), keep_ns=DAY_NS)
    async with embedded_store(tmp_path / "store") as store:
        encoded = store.encode(rows)
        assert isinstance(encoded, Encoded)
        assert encoded.num_rows == rows.num_rows
        await store.insert("samples", encoded, token="one")
        await store.insert("samples", encoded, token="one")
        await store.insert("samples", rows, token="one")
        everything = "SELECT * EXCEPT stored_at FROM samples ORDER BY ALL"
        once = await store.query(everything)
        assert len(once) == len(readings)
        await store.insert("samples", rows, token="two")
        assert await store.query(everything) == [row for row in once for _ in range(2)]


async def test_an_encoded_table_of_another_shape_is_refused_as_the_table_is(
    tmp_path: Path,
) -> None:
    """The engine's answer keeps its class on both ways."""
    rows = table([enriched([Reading(new_id(), TICK_MS)])], now_ns=time.time_ns(), keep_ns=DAY_NS)
    rows = rows.rename_columns([f"other_{name}" for name in rows.column_names])
    async with embedded_store(tmp_path / "store") as store:
        for form in (rows, store.encode(rows)):
            with pytest.raises(FatalError):
                await store.insert("samples", form, token="other")


def test_a_server_gets_the_table_itself() -> None:
    """Its client encodes, with the compression that both agreed on."""
    store = Store(BatcherSettings(store_url="http://localhost:1"))
    rows = table([enriched([Reading(new_id(), TICK_MS)])], now_ns=time.time_ns(), keep_ns=DAY_NS)
    assert store.encode(rows) is rows


async def test_merges_of_the_engine_have_a_lower_priority(tmp_path: Path) -> None:
    """Its threads are found by the name that this version of the engine gives them."""
    async with embedded_store(tmp_path) as store:
        for number in range(3):
            await store.command("INSERT INTO host_progress VALUES ('h', {n:Int64})", {"n": number})
        await store.command("OPTIMIZE TABLE host_progress FINAL")
        async with asyncio.timeout(10):
            # The engine may start another thread at any moment.
            while not let_merges_wait() or _priorities("MergeMutate") != {10}:
                await asyncio.sleep(0.01)
    assert os.getpriority(os.PRIO_PROCESS, 0) == 0


def _priorities(name: str) -> set[int]:
    """Of this process's threads with a name."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # threads end
            if (task / "comm").read_text().strip() == name:
                found.add(os.getpriority(os.PRIO_PROCESS, int(task.name)))
    return found
