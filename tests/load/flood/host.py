"""One host that does not exist: its VMs' counters, and the frames that tell of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from uuid import UUID

import msgspec
import numpy as np
import numpy.typing as npt

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
_GROWTHS = 32
"""Different ticks of a flood: drawing fresh numbers for each costs more than all else."""
_MOST = {
    "cpu_ns": TICK_MS * NS_PER_MS,
    "disk_read_bytes": 65_536,
    "disk_write_bytes": 65_536,
    "net_rx_bytes": 150_000,
    "net_tx_bytes": 150_000,
}
_COLUMNS = np.dtype("<u8")


@lru_cache(maxsize=1)
def _growths(vms: int, seed: int) -> npt.NDArray[np.uint64]:
    """By how much the counters of so many VMs grow: tick, meter, VM."""
    random = np.random.default_rng(seed)
    growths = np.zeros((_GROWTHS, len(METERS), vms), _COLUMNS)
    busy = random.integers(0, _BUSY, (_GROWTHS, vms)) == 0
    for place, meter in enumerate(METERS):
        if meter in _MOST:
            growths[:, place] = random.integers(1, _MOST[meter], (_GROWTHS, vms), "<u8") * busy
    growths[:, METERS.index("uptime_ms")] = TICK_MS
    growths[:, METERS.index("mem_kib_ms")] = _MEMORY_MIB * 1024 * TICK_MS
    growths.flags.writeable = False
    return growths


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
        self._growth = _growths(plan.vms, plan.seed)
        # Each host goes through the same ticks in an order of its own.
        self._order = np.random.default_rng((plan.seed, number)).permutation(_GROWTHS).tolist()
        self._vm_ids = [new_id() for _ in range(plan.vms)]
        self._counters = np.zeros((len(METERS), plan.vms), _COLUMNS)
        now = datetime.now(UTC)
        self.records = [
            VmRecord(
                vm_id=vm_id,
                customer_id=f"flood-{flood_id}-c{(number + at) % CUSTOMERS}",
                host_id=self.host_id,
                spec=VmSpec(image="flood", memory_mib=_MEMORY_MIB),
                created_at=now,
            )
            for at, vm_id in enumerate(self._vm_ids)
        ]

    def truth(self) -> dict[UUID, dict[str, int]]:
        """The counters as the last frame had them: what each VM is to be billed."""
        return {
            vm_id: dict(zip(METERS, self._counters[:, at].tolist(), strict=True))
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
        size = rows * _COLUMNS.itemsize
        flags = {
            flag: bytes([flag | SampleFlag.SIMULATED]) * rows
            for flag in (0, SampleFlag.BASELINE, SampleFlag.FINAL)
        }
        for seq in range(plan.ticks):
            if seq:
                self._counters += self._growth[self._order[seq % _GROWTHS]]
            tick_ms = first_tick_ms + seq * TICK_MS
            now_ns = time.time_ns() + self._step_ns * _STEPS[seq // _STEP_TICKS % len(_STEPS)]
            flag = {0: SampleFlag.BASELINE, plan.ticks - 1: SampleFlag.FINAL}.get(seq, 0)
            block = self._counters.tobytes()
            yield msgspec.structs.replace(
                base,
                seq=seq,
                tick_ms=tick_ms,
                sampled_at_ns=now_ns,
                clock_offset_ns=now_ns - tick_ms * NS_PER_MS,
                flags=flags[flag],
                **{
                    meter: block[place * size : place * size + size]
                    for place, meter in enumerate(METERS)
                },
            )
