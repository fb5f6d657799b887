"""The simulator driver: the Firecracker driver, in front of a process that only pretends.

No guest runs, so this works on any machine. The stand-in process speaks Firecracker's API over
its socket and writes its metrics format; `vm_agent.simulator` says what its numbers are.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from vm_agent.drivers.abc import Ability, DeviceCounters, MachinePlan, Vmm
from vm_agent.drivers.firecracker import FirecrackerDriver
from vm_agent.drivers.metrics_file import MetricsFile
from vm_agent.drivers.metrics_lines import MetricsChannel, MetricsTotals
from vm_agent.drivers.paths import API_SOCKET
from vm_agent.process import VmmProcesses
from vm_agent.simulator import VERSION

_ROOT = Path(__file__).resolve().parents[2]
_PROGRAM = _ROOT / "vm_agent" / "simulator" / "__main__.py"


class SimulatorDriver(FirecrackerDriver):
    """One stand-in process per VM.

    Args:
        processes: The agent's VMM processes.
        metrics: See `FirecrackerDriver`.
    """

    name = "simulator"
    abilities = frozenset(
        {
            *(Ability.PAUSE, Ability.METADATA, Ability.BALLOON),
            *(Ability.DISK_LIMITS, Ability.NET_LIMITS),
        }
    )
    simulated = True

    def __init__(
        self, processes: VmmProcesses, metrics: type[MetricsChannel] = MetricsFile
    ) -> None:
        super().__init__(Path(sys.executable), processes, metrics=metrics)

    def _version(self) -> str:
        return VERSION

    def _argv(self, plan: MachinePlan) -> Sequence[str]:
        # The stand-in needs the standard library only, so `site` would be wasted time, and so would
        # the machinery behind `-m`. Nor does it import what lies beside it or in its run directory.
        return [
            *(sys.executable, "-S", "-P", str(_PROGRAM)),
            *("--api-sock", API_SOCKET),
            *("--id", str(plan.vm_id)),
        ]

    def _environment(self) -> Mapping[str, str] | None:
        return {**os.environ, "PYTHONPATH": str(_ROOT)}

    def _hangs_in_exit(self, vmm: Vmm) -> bool:
        # It has no vCPU threads, and no second thread that its first could wait for.
        return False

    def _device_counters(self, totals: MetricsTotals) -> DeviceCounters:
        return DeviceCounters(
            disk_read_bytes=totals.disk_read_bytes,
            disk_write_bytes=totals.disk_write_bytes,
            net_rx_bytes=totals.net_rx_bytes,
            net_tx_bytes=totals.net_tx_bytes,
            cpu_ns=totals.cpu_ns,
        )
