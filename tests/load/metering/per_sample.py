"""The baseline: what one would write first. One JSON message per sample, and row inserts.

`check` reads messages, looks up the owner, checks the counters and publishes the sample with its
owner; `write` inserts what it fetched, row by row in the client and in one statement per fetch, and
acknowledges it. Same nats-server, same engine, same tables and rollups as the real pipeline.

    python -m tests.load.metering.per_sample write nats://127.0.0.1:4222 /tmp/store
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
from clickhouse_connect.driver.client import Client

from batcher.store import Store
from runtime.buckets import Bucket
from runtime.bus import Bus
from runtime.consumer import Consumer, Delivery
from runtime.settings import CommonSettings
from runtime.telemetry import configure_logging
from schemas import subjects
from schemas.codec import encode
from schemas.frames import Frame, FramesStored
from schemas.units import NS_PER_MS, NS_PER_S
from schemas.vms import METERS, decode_vm_record
from tests.support.store import embedded_store

RAW, CHECKED = "BASELINE_RAW", "BASELINE_CHECKED"
_FETCH = 500
_IN_FLIGHT = 500
_ROW = (
    "customer_id", "vm_id", "incarnation", "tick_ms", "run_id", "seq", "host", "sampled_at_ns",
    "state", "flags", "mem_bytes", *METERS, "pool", "region", "price_plan", "vcpus", "memory_mib",
)  # fmt: skip
_UUIDS = ("vm_id", "run_id")
_AHEAD_NS = 5 * NS_PER_S
_TOLERANCE_NS = 250 * NS_PER_MS


def samples_of(frame: Frame) -> Iterator[dict[str, Any]]:
    """Every row of a frame as the message that it would have been."""
    columns = {
        name: np.frombuffer(getattr(frame, name), dtype).tolist()
        for name, dtype in (
            ("incarnations", "<u4"), ("states", "<u1"), ("flags", "<u1"), ("mem_bytes", "<u8"),
            *((meter, "<u8") for meter in METERS),
        )
    }  # fmt: skip
    for row in range(frame.rows):
        yield {
            "host": frame.host,
            "run_id": str(frame.run_id),
            "seq": frame.seq,
            "tick_ms": frame.tick_ms,
            "sampled_at_ns": frame.sampled_at_ns,
            "vm_id": str(UUID(bytes=frame.vm_ids[16 * row : 16 * row + 16])),
            "incarnation": columns["incarnations"][row],
            "state": columns["states"][row],
            "flags": columns["flags"][row],
            "mem_bytes": columns["mem_bytes"][row],
            **{meter: columns[meter][row] for meter in METERS},
        }


async def declare(bus: Bus) -> None:
    """The two streams."""
    for stream, subject in ((RAW, "baseline.raw.>"), (CHECKED, "baseline.checked.>")):
        await bus.js.add_stream(name=stream, subjects=[subject])


def _consumer(bus: Bus, stream: str) -> Consumer:
    return Consumer(bus, stream, "baseline", max_batch=_FETCH, max_ack_pending=4 * _FETCH)


async def _owners(bus: Bus) -> dict[str, dict[str, Any]]:
    bucket = Bucket(bus, subjects.VM_SPECS, decode_vm_record)
    return {
        str(record.vm_id): {
            "host": record.host_id,
            "customer_id": record.customer_id,
            "pool": record.pool,
            "region": record.region,
            "price_plan": record.price_plan,
            "vcpus": record.spec.vcpus,
            "memory_mib": record.spec.memory_mib,
        }
        for record in (await bucket.all()).values()
    }


async def check(bus: Bus, stop: asyncio.Event) -> None:
    """Messages in, messages with owners out."""
    owners = await _owners(bus)
    last: dict[tuple[str, int], dict[str, Any]] = {}
    room = asyncio.Semaphore(_IN_FLIGHT)

    async def out(delivery: Delivery, sample: dict[str, Any]) -> None:
        try:
            subject = f"baseline.checked.{sample['host']}"
            await (await bus.js.publish_async(subject, json.dumps(sample).encode()))
            await delivery.ack()
        finally:
            room.release()

    async with asyncio.TaskGroup() as group:
        async for deliveries in _consumer(bus, RAW).batches(stop):
            for delivery in deliveries:
                sample = json.loads(delivery.data)
                owner = owners.get(sample["vm_id"])
                if owner is None or not _good(sample, owner, last):
                    raise RuntimeError(f"the load holds a bad sample: {sample}")
                await room.acquire()
                group.create_task(out(delivery, sample | owner), name="out")


def _good(
    sample: dict[str, Any], owner: dict[str, Any], last: dict[tuple[str, int], dict[str, Any]]
) -> bool:
    if owner["host"] != sample["host"]:
        return False
    if sample["tick_ms"] * NS_PER_MS > time.time_ns() + _AHEAD_NS:
        return False
    key = (sample["vm_id"], sample["incarnation"])
    before = last.get(key)
    if before is not None:
        if any(sample[meter] < before[meter] for meter in METERS):
            return False
        elapsed_ns = (sample["tick_ms"] - before["tick_ms"]) * NS_PER_MS
        if sample["cpu_ns"] - before["cpu_ns"] > (owner["vcpus"] + 2) * elapsed_ns + _TOLERANCE_NS:
            return False
    last[key] = sample
    return True


async def write(bus: Bus, store: Store, stop: asyncio.Event) -> None:
    """Messages in, rows into the store."""
    names = [*_ROW, "collected_at"]
    async for deliveries in _consumer(bus, CHECKED).batches(stop):
        now = datetime.now(UTC)
        rows = []
        for delivery in deliveries:
            sample = json.loads(delivery.data)
            for name in _UUIDS:
                sample[name] = UUID(sample[name])
            rows.append([*(sample[name] for name in _ROW), now])
        await store._run(partial(Client.insert, table="samples", data=rows, column_names=names))
        for delivery in deliveries:
            await delivery.ack()
        stored = FramesStored(
            batch_id="baseline", rows=len(rows), frames=len(rows), stored_at_ns=time.time_ns()
        )
        await bus.publish(subjects.METRICS_STORED, encode(stored))


async def _run(role: str, url: str, folder: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with Bus.connect(CommonSettings(nats_url=url), name=f"baseline-{role}") as bus:
        if role == "check":
            await check(bus, stop)
        else:
            async with embedded_store(Path(folder)) as store:
                sys.stdout.write("ready\n")
                sys.stdout.flush()
                await write(bus, store, stop)


if __name__ == "__main__":
    configure_logging("baseline", "error")
    asyncio.run(_run(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else ""))
