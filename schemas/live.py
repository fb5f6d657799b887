"""Live metrics: data of the SSE event `sample` of `GET /v1/metrics/live`."""

from __future__ import annotations

import msgspec

from schemas.ids import VmId
from schemas.units import Counter
from schemas.vms import Timestamp


class LiveSample(msgspec.Struct, frozen=True, kw_only=True):
    """One VM at one tick: its cumulative counters, and what it is.

    Attributes:
        at: The tick, a multiple of 100 ms.
        state: Empty if this version does not know it.
        final: The incarnation has ended; these are its last counters.
        skipped: Samples of this VM that were left out just before, because the client was slow.
    """

    vm_id: VmId
    at: Timestamp
    incarnation: int
    state: str = ""
    final: bool = False
    simulated: bool = False
    vcpus: int
    memory_mib: int
    mem_bytes: Counter
    uptime_ms: Counter
    cpu_ns: Counter
    mem_kib_ms: Counter
    disk_read_bytes: Counter
    disk_write_bytes: Counter
    net_rx_bytes: Counter
    net_tx_bytes: Counter
    skipped: int = 0
