"""Another codec changes how rows lie on disk, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from batcher.migrations import migrate, shipped
from batcher.settings import BatcherSettings
from batcher.store import Store
from schemas.frames import EnrichedFrame
from schemas.ids import new_id
from schemas.units import MAX_COUNTER
from schemas.vms import METERS
from tests.support.store import Reading, enriched, insert, insert_alone

TICK_MS = time.time_ns() // 10**8 * 100


def frames(first: int) -> list[EnrichedFrame]:
    """A busy VM, an idle one, and one at the end of what a counter holds."""
    random = np.random.default_rng(first)
    vms = [new_id() for _ in range(3)]
    out = []
    for seq in range(first, first + 50):
        used = [seq * 1000 * int(random.integers(0, 10**5)), 0, MAX_COUNTER - 100 + seq]
        readings = [
            Reading(vm_id, TICK_MS + seq * 100, counters=dict.fromkeys(METERS, value))
            for vm_id, value in zip(vms, used, strict=True)
        ]
        out.append(enriched(readings, seq=seq, collected_at_ns=time.time_ns() + seq))
    return out


async def values(store: Store) -> Sequence[Sequence[Any]]:
    return await store.query("SELECT * EXCEPT stored_at FROM samples ORDER BY ALL")


async def test_rows_are_the_same_before_and_after_their_codec_changed(tmp_path: Path) -> None:
    """Old parts are read as they are, then merged with new ones: every value stays."""
    names = [migration.name for migration in shipped()]
    older = shipped()[: names.index("sample_codecs")]
    store = Store(BatcherSettings(store_path=str(tmp_path / "store")))
    try:
        await migrate(store, older)
        await insert_alone(store, frames(0))
        before = await values(store)
        assert len(before) == 150
        await migrate(store, shipped())
        # With a later migration's column behind all others.
        assert await values(store) == [(*row, 0) for row in before]
        await insert(store, frames(50))
        both = await values(store)
        await store.command("ALTER TABLE samples MODIFY SETTING min_bytes_for_wide_part = 0")
        await store.command("OPTIMIZE TABLE samples FINAL")
        assert await values(store) == both
        assert len(both) == 300
    finally:
        await store.close()
