"""A guest's disk bytes over all its resets, from counters that begin again at each of them.

Cloud Hypervisor boots a guest that resets in the same process, with every counter at 0. What was
read of the machine before is then added up here, and saved with what is read of the present one.
"""

from __future__ import annotations

import os
from pathlib import Path

from vm_agent.drivers.abc import DriverError
from vm_agent.drivers.cloud_hypervisor_api import BlockCounters
from vm_agent.drivers.saved import DamagedError, SavedNumbers

COUNTERS = "counters.state"

_MOST = 2**63 - 1
_NS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


class GuestCounters:
    """Totals of one VMM; never inflated, never going back.

    A reset shows in counters that went down, or in an event that is younger than the last
    reading. Two clocks meet there, so an event counts only if it is younger for sure: its time is
    taken as since the process's start, which is a little before the VMM's own beginning of time.
    An event that is in doubt is left to the counters.

    Args:
        run_dir: Where the totals are saved.
        start_ticks: The process's start, field 22 of `/proc/<pid>/stat`.

    Raises:
        DriverError: What is saved is damaged.
    """

    def __init__(self, run_dir: Path, start_ticks: int) -> None:
        self._started_ns = start_ticks * _NS_PER_TICK
        self._saved = SavedNumbers(run_dir / COUNTERS, 5)
        try:
            numbers = self._saved.load() or (0, 0, 0, 0, 0)
        except DamagedError as error:
            self._saved.close()
            raise DriverError(f"the saved counters in {run_dir} are damaged: {error}") from error
        self._base_read, self._base_write, self._read, self._write, self._read_at_ns = numbers

    @property
    def read_bytes(self) -> int:
        """All that the guest has read from its disk."""
        return min(self._base_read + self._read, _MOST)

    @property
    def write_bytes(self) -> int:
        """All that the guest has written to its disk."""
        return min(self._base_write + self._write, _MOST)

    def take(self, reading: BlockCounters, at_ns: int, reset_ns: int) -> None:
        """Take in a reading, and save it.

        Args:
            reading: What the VMM said.
            at_ns: When its answer was here, CLOCK_BOOTTIME.
            reset_ns: When the guest's last reset began, in ns since the VMM's start, from the
                events there were before the question; -1 for never.
        """
        read, write = reading.read_bytes, reading.write_bytes
        was_reset = reset_ns >= 0 and self._started_ns + reset_ns > self._read_at_ns
        if was_reset or read < self._read or write < self._write:
            self._base_read, self._base_write = self.read_bytes, self.write_bytes
        self._read, self._write, self._read_at_ns = read, write, at_ns
        self._saved.save(
            self._base_read, self._base_write, self._read, self._write, self._read_at_ns
        )

    def close(self) -> None:
        """Close the file; may be called twice."""
        self._saved.close()
