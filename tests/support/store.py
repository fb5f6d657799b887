"""An embedded store with the schema in it, and enriched frames to put there."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import numpy as np
import pyarrow as pa
import pytest

from batcher.batch import table, token
from batcher.hours import apart, hours
from batcher.incarnation_hosts import IncarnationHosts
from batcher.migrations import migrate, shipped
from batcher.retention import set_retention
from batcher.settings import BatcherSettings
from batcher.store import Store
from batcher.usage import report
from batcher.windows import Window
from runtime.errors import FatalError
from schemas.frames import COLUMNS, ENRICHMENT_COLUMNS, EnrichedFrame
from schemas.ids import new_id
from schemas.usage import UsageQuery
from schemas.vms import METERS

DAY_NS = 86_400 * 10**9


@dataclass(frozen=True)
class Reading:
    """One VM at one tick."""

    vm_id: UUID
    tick_ms: int
    incarnation: int = 1
    flags: int = 0
    counters: Mapping[str, int] = field(default_factory=dict)
    customer: str = "acme"
    pool: str = "default"
    price_plan: str = "default"


def enriched(
    readings: Sequence[Reading],
    *,
    host: str = "h1",
    run_id: UUID | None = None,
    seq: int = 0,
    collected_at_ns: int | None = None,
    sampled_at_ns: int | None = None,
) -> EnrichedFrame:
    """One frame of these readings, all of the first one's tick."""
    names = {
        "customers": sorted({r.customer for r in readings}),
        "pools": sorted({r.pool for r in readings}),
        "price_plans": sorted({r.price_plan for r in readings}),
    }
    values: dict[str, Sequence[int]] = {
        "incarnations": [r.incarnation for r in readings],
        "states": [4] * len(readings),
        "flags": [r.flags for r in readings],
        "mem_bytes": [64 * 1024 * 1024] * len(readings),
        **{meter: [r.counters.get(meter, 0) for r in readings] for meter in METERS},
        "customer_index": [names["customers"].index(r.customer) for r in readings],
        "pool_index": [names["pools"].index(r.pool) for r in readings],
        "price_plan_index": [names["price_plans"].index(r.price_plan) for r in readings],
        "vcpus": [1] * len(readings),
        "memory_mib": [128] * len(readings),
    }
    columns = {
        c.name: np.array(values[c.name], dtype=c.dtype).tobytes()
        for c in COLUMNS + ENRICHMENT_COLUMNS
        if c.name != "vm_ids"
    }
    tick_ms = readings[0].tick_ms if readings else time.time_ns() // 10**8 * 100
    return EnrichedFrame(
        host=host,
        run_id=run_id or new_id(),
        seq=seq,
        tick_ms=tick_ms,
        sampled_at_ns=sampled_at_ns or tick_ms * 10**6,
        collected_at_ns=collected_at_ns or time.time_ns(),
        region="local",
        customers=tuple(names["customers"]),
        pools=tuple(names["pools"]),
        price_plans=tuple(names["price_plans"]),
        vm_ids=b"".join(r.vm_id.bytes for r in readings),
        **columns,  # type: ignore[arg-type]
    )


def reading(customer: str, cpu_ns: int = 5) -> Reading:
    """A VM of its own that has used so much just now."""
    now_ms = int(datetime.now(UTC).timestamp()) * 1000
    return Reading(new_id(), now_ms, counters={"cpu_ns": cpu_ns}, customer=customer)


async def used(store: Store, customer: str) -> tuple[int, int]:
    """CPU and samples of a customer in the last minutes."""
    now = datetime.now(UTC)
    query = UsageQuery(start=now - timedelta(minutes=5), end=now + timedelta(minutes=5))
    answer = await report(
        store, customer, query, Window.between(query.start, query.end), limit_s=10
    )
    return answer.totals["cpu_ns"], sum(row.samples for row in answer.vms)


async def check_store(store: Store) -> None:
    """What every kind of store must do: schema, retention, exact inserts once, queries."""
    for _ in range(2):
        await migrate(store, shipped())
        await set_retention(store, "samples", 5)
    frames = [enriched([reading("check"), reading("check", 2**62)])]
    for _ in range(2):
        await insert(store, frames)
    assert await used(store, "check") == (2**62 + 5, 2)
    rows = await store.query("SELECT count() FROM samples WHERE customer_id = 'check'")
    assert rows[0][0] == 2
    assert await used(store, "it's `me`") == (0, 0)


async def check_wrong_password(url: str) -> None:
    """A wrong password is fatal, and does not stand in the error."""
    store = Store(BatcherSettings(store_url=url, store_password="hunter2"))
    try:
        with pytest.raises(FatalError) as caught:
            await store.query("SELECT 1")
    finally:
        await store.close()
    assert "hunter2" not in str(caught.value)


async def insert(store: Store, frames: Sequence[EnrichedFrame]) -> None:
    """Put frames into the store as the batcher does."""
    rows = table(frames, now_ns=time.time_ns(), keep_ns=7 * DAY_NS)
    sink = IncarnationHosts(store)
    await sink.insert("samples", sink.encode(rows), token=token(frames))


async def insert_apart(store: Store, frames: Sequence[EnrichedFrame]) -> pa.Table:
    """As `insert`, without the hours; returns those, to be put into `usage_hour`."""
    rows = table(frames, now_ns=time.time_ns(), keep_ns=7 * DAY_NS)
    sink = IncarnationHosts(store)
    await sink.insert("samples", sink.encode(apart(rows)), token=token(frames) + "apart")
    return hours(rows)


async def insert_alone(store: Store, frames: Sequence[EnrichedFrame]) -> None:
    """Put samples into a store as an earlier batcher did, with nothing about hosts."""
    rows = table(frames, now_ns=time.time_ns(), keep_ns=7 * DAY_NS)
    await store.insert("samples", rows, token=token(frames))


@asynccontextmanager
async def embedded_store(folder: Path) -> AsyncIterator[Store]:
    """A store in `folder` with all tables. chDB has one path per process: one at a time."""
    store = Store(BatcherSettings(store_path=str(folder)))
    try:
        await migrate(store, shipped())
        yield store
    finally:
        await store.close()
