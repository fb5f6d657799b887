"""Rates of running VMs over the last second, from their cumulative counters."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from uuid import UUID

from decisec.live.samples import Sample, samples
from schemas.frames import EnrichedFrame, FramesStored, SampleFlag
from schemas.units import NS_PER_MS, TICK_MS

WINDOW_MS = 1000
FORGET_MS = 10_000
"""A VM without a sample for so long leaves the board."""
_LAGS_KEPT = 200
_MS_PER_S = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class VmRates:
    """What a VM does now.

    Attributes:
        state: Empty if this version does not know it.
        cpu_ratio: CPU seconds per second: 1.0 is one busy CPU.
        mem_bytes: Resident memory of its VMM.
        samples_per_s: Samples that arrived in the last second.
    """

    vm_id: UUID
    customer: str
    state: str
    simulated: bool
    cpu_ratio: float
    mem_bytes: int
    disk_read_bytes_per_s: float
    disk_write_bytes_per_s: float
    net_rx_bytes_per_s: float
    net_tx_bytes_per_s: float
    samples_per_s: float


class Live:
    """The newest samples of each VM. Pure: time comes in as an argument.

    Args:
        customers: Only VMs of these; None for all.
    """

    def __init__(self, customers: frozenset[str] | None = None) -> None:
        self._customers = customers
        self._vms: dict[UUID, deque[tuple[int, int, Sample]]] = {}
        self._lags_ms: deque[int] = deque(maxlen=_LAGS_KEPT)

    def take(self, frame: EnrichedFrame, now_ms: int) -> None:
        """Take a frame that arrived at `now_ms` of any steadily growing clock."""
        for sample in samples(frame):
            if self._customers is None or sample.customer in self._customers:
                self.take_sample(frame.tick_ms, sample, now_ms)

    def take_sample(self, tick_ms: int, sample: Sample, now_ms: int) -> None:
        """Take one VM's sample of a tick."""
        kept = self._vms.setdefault(sample.vm_id, deque(maxlen=WINDOW_MS // TICK_MS + 1))
        if kept and sample.incarnation != kept[-1][2].incarnation:
            kept.clear()  # counters restart with each incarnation
        if not kept or tick_ms > kept[-1][0]:
            kept.append((tick_ms, now_ms, sample))

    def stored(self, report: FramesStored) -> None:
        """Take the batcher's word that frames can be queried."""
        self._lags_ms.extend(report.lags_ms)

    @property
    def lag_ms(self) -> int | None:
        """Median time from sample taken to row queryable, of the last frames; None if unknown."""
        if not self._lags_ms:
            return None
        return sorted(self._lags_ms)[len(self._lags_ms) // 2]

    def rates(self, now_ms: int) -> list[VmRates]:
        """All VMs heard of lately, by customer and age."""
        for vm_id in [v for v, kept in self._vms.items() if now_ms - kept[-1][1] >= FORGET_MS]:
            del self._vms[vm_id]
        found = [_rates(vm_id, kept, now_ms) for vm_id, kept in self._vms.items()]
        return sorted(found, key=lambda rates: (rates.customer, rates.vm_id))


def _rates(vm_id: UUID, kept: deque[tuple[int, int, Sample]], now_ms: int) -> VmRates:
    first_tick, _, first = kept[0]
    last_tick, _, last = kept[-1]
    fresh = sum(1 for _, arrived_ms, _ in kept if now_ms - arrived_ms < WINDOW_MS)
    elapsed_ms = last_tick - first_tick

    def per_s(meter: str) -> float:
        if not elapsed_ms or not fresh or SampleFlag.FINAL in last.flags:
            return 0.0
        return (last.counter(meter) - first.counter(meter)) * _MS_PER_S / elapsed_ms

    return VmRates(
        vm_id=vm_id,
        customer=last.customer,
        state="stopped" if SampleFlag.FINAL in last.flags else (last.state or ""),
        simulated=SampleFlag.SIMULATED in last.flags,
        cpu_ratio=per_s("cpu_ns") / (NS_PER_MS * _MS_PER_S),
        mem_bytes=last.mem_bytes if fresh else 0,
        disk_read_bytes_per_s=per_s("disk_read_bytes"),
        disk_write_bytes_per_s=per_s("disk_write_bytes"),
        net_rx_bytes_per_s=per_s("net_rx_bytes"),
        net_tx_bytes_per_s=per_s("net_tx_bytes"),
        samples_per_s=min(fresh, WINDOW_MS // TICK_MS) * _MS_PER_S / WINDOW_MS,
    )
