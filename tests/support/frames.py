"""Raw frames and records as an honest host makes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import numpy as np

from schemas.frames import Frame
from schemas.ids import new_id
from schemas.units import MIB, NS_PER_MS, TICK_MS
from schemas.vms import METERS, STATE_NUMBERS, VmRecord, VmSpec, VmState

HOST = "host-a"
BASE_MS = 1_760_000_000_000
"""Tick of the first frames in tests with a clock of their own."""


def record(
    vm_id: UUID,
    *,
    customer: str = "acme",
    host: str = HOST,
    vcpus: int = 1,
    memory_mib: int = 128,
    pool: str = "default",
    price_plan: str = "default",
) -> VmRecord:
    """What the gateway writes for a VM."""
    return VmRecord(
        vm_id=vm_id,
        customer_id=customer,
        host_id=host,
        spec=VmSpec(image="tiny", vcpus=vcpus, memory_mib=memory_mib),
        pool=pool,
        price_plan=price_plan,
        created_at=datetime(2025, 1, 1, tzinfo=UTC),
    )


@dataclass(frozen=True, slots=True)
class Row:
    """One VM in a frame; meters that are not named are zero."""

    vm_id: UUID
    counters: Mapping[str, int] = field(default_factory=dict)
    incarnation: int = 1
    mem_bytes: int = 128 * MIB
    flags: int = 0
    state: VmState = VmState.RUNNING


def frame(
    rows: Sequence[Row],
    *,
    run_id: UUID,
    seq: int = 0,
    tick_ms: int | None = None,
    host: str = HOST,
    read_late_ms: int = 0,
) -> Frame:
    """A frame of these rows.

    Args:
        rows: In this order.
        run_id: The agent's run.
        seq: Number in the run.
        tick_ms: By default `BASE_MS` and 100 ms per frame number.
        host: Who sends it.
        read_late_ms: How long after the tick the readings were done.
    """
    tick_ms = BASE_MS + seq * TICK_MS if tick_ms is None else tick_ms
    columns: dict[str, Any] = {
        meter: np.array([row.counters.get(meter, 0) for row in rows], "<u8").tobytes()
        for meter in METERS
    }
    return Frame(
        host=host,
        run_id=run_id,
        seq=seq,
        tick_ms=tick_ms,
        sampled_at_ns=(tick_ms + read_late_ms) * NS_PER_MS,
        vm_ids=b"".join(row.vm_id.bytes for row in rows),
        incarnations=np.array([row.incarnation for row in rows], "<u4").tobytes(),
        states=bytes(STATE_NUMBERS[row.state] for row in rows),
        flags=bytes(row.flags for row in rows),
        mem_bytes=np.array([row.mem_bytes for row in rows], "<u8").tobytes(),
        **columns,
    )


def busy_frames(
    vm_ids: Sequence[UUID], count: int, *, start_ms: int, host: str = HOST, seed: int = 1
) -> Iterator[Frame]:
    """Consecutive ticks of a busy host: exact uptime and memory, noisy CPU, network and disks."""
    random = np.random.default_rng(seed)
    run_id = new_id()
    ids = b"".join(vm_id.bytes for vm_id in vm_ids)
    rows = len(vm_ids)
    incarnations = np.ones(rows, "<u4").tobytes()
    states = bytes([STATE_NUMBERS[VmState.RUNNING]] * rows)
    memory = np.full(rows, 128 * MIB, "<u8").tobytes()
    counters = {meter: np.zeros(rows, "<u8") for meter in METERS}
    empty = Frame(host=host, run_id=run_id, seq=0, tick_ms=start_ms, sampled_at_ns=0)
    for seq in range(count):
        if seq:
            counters["uptime_ms"] += np.uint64(TICK_MS)
            counters["mem_kib_ms"] += np.uint64(128 * 1024 * TICK_MS)
            counters["cpu_ns"] += random.integers(0, TICK_MS * NS_PER_MS, rows, "<u8")
            for meter in METERS[3:]:
                counters[meter] += random.integers(0, 100_000, rows, "<u8")
        tick_ms = start_ms + seq * TICK_MS
        yield msgspec.structs.replace(
            empty,
            seq=seq,
            tick_ms=tick_ms,
            sampled_at_ns=tick_ms * NS_PER_MS,
            vm_ids=ids,
            incarnations=incarnations,
            states=states,
            flags=bytes(rows),
            mem_bytes=memory,
            **{meter: column.tobytes() for meter, column in counters.items()},
        )
