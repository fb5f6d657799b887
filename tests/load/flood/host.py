"""One host that does not exist: its VMs' counters, and the frames that tell of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import UUID

import msgspec
import numpy as np

from schemas.frames import Frame, SampleFlag
from schemas.ids import new_id
from schemas.units import MIB, NS_PER_MS, NS_PER_S, TICK_MS
from schemas.vms import METERS, STATE_NUMBERS, VmRecord, VmSpec, VmState
from tests.load.flood.plan import CUSTOMERS, Plan

_MEMORY_MIB = 128
_STEPS = (0, 1, -1)
_STEP_TICKS = 100
_BUSY = 10
"""One VM in so many does something in a tick; the others idle."""


class FloodHost:
    """A host's VMs from their start to their end.

    Attributes:
        host_id: Its id, new with each flood.
        records: What the gateway would have written of its VMs.
    """

    def __init__(self, plan: Plan, flood_id: str, number: int) -> None:
        self.host_id = f"flood-{flood_id}-{number}"
        self._plan = plan
        self._step_ns = plan.step_s * NS_PER_S if number == plan.hosts - 1 else 0
        self._random = np.random.default_rng((plan.seed, number))
        self._vm_ids = [new_id() for _ in range(plan.vms)]
        self._counters = {meter: np.zeros(plan.vms, "<u8") for meter in METERS}
        self.records = [
            VmRecord(
                vm_id=vm_id,
                customer_id=f"flood-{flood_id}-c{(number + at) % CUSTOMERS}",
                host_id=self.host_id,
                spec=VmSpec(image="flood", memory_mib=_MEMORY_MIB),
                created_at=datetime.now(UTC),
            )
            for at, vm_id in enumerate(self._vm_ids)
        ]

    def truth(self) -> dict[UUID, dict[str, int]]:
        """The counters as the last frame had them: what each VM is to be billed."""
        return {
            vm_id: {meter: int(self._counters[meter][at]) for meter in METERS}
            for at, vm_id in enumerate(self._vm_ids)
        }

    def frames(self, first_tick_ms: int) -> Iterator[Frame]:
        """All frames, in order: a baseline of zeros first, the final counters last.

        Each counts as sampled at the moment at which it is asked for.
        """
        plan, rows = self._plan, self._plan.vms
        base = Frame(
            host=self.host_id,
            run_id=new_id(),
            seq=0,
            tick_ms=first_tick_ms,
            sampled_at_ns=0,
            vm_ids=b"".join(vm_id.bytes for vm_id in self._vm_ids),
            incarnations=np.ones(rows, "<u4").tobytes(),
            states=bytes([STATE_NUMBERS[VmState.RUNNING]] * rows),
            mem_bytes=np.full(rows, _MEMORY_MIB * MIB, "<u8").tobytes(),
        )
        for seq in range(plan.ticks):
            if seq:
                self._advance()
            tick_ms = first_tick_ms + seq * TICK_MS
            now_ns = time.time_ns() + self._step_ns * _STEPS[seq // _STEP_TICKS % len(_STEPS)]
            flag = {0: SampleFlag.BASELINE, plan.ticks - 1: SampleFlag.FINAL}.get(seq, 0)
            yield msgspec.structs.replace(
                base,
                seq=seq,
                tick_ms=tick_ms,
                sampled_at_ns=now_ns,
                clock_offset_ns=now_ns - tick_ms * NS_PER_MS,
                flags=bytes([flag | SampleFlag.SIMULATED]) * rows,
                **{meter: column.tobytes() for meter, column in self._counters.items()},
            )

    def _advance(self) -> None:
        rows = self._plan.vms
        self._counters["uptime_ms"] += np.uint64(TICK_MS)
        self._counters["mem_kib_ms"] += np.uint64(_MEMORY_MIB * 1024 * TICK_MS)
        busy = self._random.integers(0, _BUSY, rows) == 0
        for meter, most in (
            ("cpu_ns", TICK_MS * NS_PER_MS),
            ("disk_read_bytes", 65_536),
            ("disk_write_bytes", 65_536),
            ("net_rx_bytes", 150_000),
            ("net_tx_bytes", 150_000),
        ):
            self._counters[meter] += self._random.integers(1, most, rows, "<u8") * busy
