"""One incarnation under the meter: from its zero baseline to its final sample."""

from __future__ import annotations

from typing import NamedTuple, Protocol
from uuid import UUID

from schemas.frames import SampleFlag
from schemas.vms import Counters, VmState
from vm_agent.counters import ZERO, Values, climb, reading, to_counters, to_values
from vm_agent.drivers.abc import DeviceCounters

_MEMORY_EVERY = 10
"""Ticks between two readings of the memory gauge: it is no billable counter."""

_BASELINE = int(SampleFlag.BASELINE)
_FINAL = int(SampleFlag.FINAL)


class Sources(Protocol):
    """The kernel's numbers of one VMM, read in microseconds and without blocking.

    A `None` says that the source is gone: the process has ended, the tap is removed.
    """

    def cpu_ns(self) -> int | None:
        """CPU clock of the process."""

    def settled_cpu_ns(self) -> int | None:
        """CPU time of a process that has ended and whose clock nobody has read in time."""

    def mem_bytes(self) -> int | None:
        """Resident memory of the process."""

    def net_bytes(self) -> tuple[int, int] | None:
        """Bytes that the guest received and sent; None without a tap."""

    def close(self) -> None:
        """Free what is kept open."""


class Row(NamedTuple):
    """One VM's line in a frame."""

    incarnation: int
    state: VmState
    flags: int
    mem_bytes: int
    values: Values


class VmMeter:
    """Counters of one incarnation.

    Attributes:
        state: The VM's state as the next row shows it.
        device: What the VMM said last; refreshed in the background.
        held: Readings that had gone back and were held; the sampler takes it to zero.

    Args:
        vm_id: Whose.
        incarnation: Which.
        memory_mib: Guest memory.
        started_ns: CLOCK_BOOTTIME at VMM start.
        sources: The kernel's numbers.
        state: The VM's state, kept up to date by the owner.
        simulated: Marks every sample as made up.
        last: What earlier agent runs have already reported; None before the baseline.
    """

    def __init__(
        self,
        vm_id: UUID,
        incarnation: int,
        *,
        memory_mib: int,
        started_ns: int,
        sources: Sources,
        state: VmState,
        simulated: bool = False,
        last: Values | None = None,
    ) -> None:
        self.vm_id = vm_id
        self.incarnation = incarnation
        self.state = state
        self.held = 0
        self._memory_mib = memory_mib
        self._started_ns = started_ns
        self._ended_ns: int | None = None
        self._sources = sources
        self._simulated = int(SampleFlag.SIMULATED) if simulated else 0
        self._last = last or ZERO
        self._based = last is not None
        self._final: Values | None = None
        self._mem_bytes = 0
        self._until_memory = 0
        # Until the VMM was asked once, what was reported before stands. A simulator's process
        # has a real CPU clock, and that is not the number to show.
        self.device = DeviceCounters(
            disk_read_bytes=self._last[3],
            disk_write_bytes=self._last[4],
            cpu_ns=self._last[1] if simulated else None,
            net_rx_bytes=self._last[5] if simulated else None,
            net_tx_bytes=self._last[6] if simulated else None,
        )

    @property
    def over(self) -> bool:
        """Whether the final counters stand."""
        return self._final is not None

    @property
    def ready_for_last(self) -> bool:
        """Whether the next row is the final one: not before the baseline was sent."""
        return self._based and self._final is not None

    def stop_clock(self, now_ns: int) -> None:
        """The VMM ended at this CLOCK_BOOTTIME: uptime grows no more."""
        if self._ended_ns is None:
            self._ended_ns = now_ns

    def row(self, now_ns: int) -> Row:
        """The row for the tick at this CLOCK_BOOTTIME: baseline, sample or final."""
        if not self._based:
            self._based = True
            flags = _BASELINE | self._simulated
            return Row(self.incarnation, self.state, flags, self._memory(), ZERO)
        if self._final is not None:
            flags = _FINAL | self._simulated
            return Row(self.incarnation, VmState.STOPPED, flags, 0, self._final)
        values = self._climb(self._read(now_ns, None))
        return Row(self.incarnation, self.state, self._simulated, self._memory(), values)

    def settle(self, *, now_ns: int, cpu_ns: int | None) -> Counters:
        """The counters at the end of the VMM, which must be gone and its device read.

        Args:
            now_ns: CLOCK_BOOTTIME, used where `stop_clock` was not called.
            cpu_ns: Exact CPU time of the ended process; None takes that of its control group, or
                the last one seen.
        """
        self.stop_clock(now_ns)
        if cpu_ns is None and (settled_ns := self._sources.settled_cpu_ns()) is not None:
            # The group misses the moment before the process joined it.
            cpu_ns = max(settled_ns, self._last[1])
        values = self._climb(self._read(now_ns, cpu_ns))
        self._sources.close()
        return to_counters(values)

    def finish(self, final: Counters) -> None:
        """Let the next row be the final one."""
        self._final = to_values(final)

    def close(self) -> None:
        """Free the sources."""
        self._sources.close()

    def _read(self, now_ns: int, cpu_ns: int | None) -> Values:
        if cpu_ns is None:
            cpu_ns = self._sources.cpu_ns()
        net = self._sources.net_bytes()
        ended_ns = self._ended_ns
        return reading(
            uptime_ns=(now_ns if ended_ns is None else ended_ns) - self._started_ns,
            memory_mib=self._memory_mib,
            cpu_ns=self._last[1] if cpu_ns is None else cpu_ns,
            net=self._last[5:7] if net is None else net,
            device=self.device,
        )

    def _climb(self, read: Values) -> Values:
        self._last, held = climb(self._last, read)
        self.held += held
        return self._last

    def _memory(self) -> int:
        self._until_memory -= 1
        if self._until_memory < 0:
            self._until_memory = _MEMORY_EVERY - 1
            read = self._sources.mem_bytes()
            self._mem_bytes = self._mem_bytes if read is None else read
        return self._mem_bytes


class GoneSources:
    """Sources of a VMM that is gone."""

    def cpu_ns(self) -> int | None:
        """None: no process."""
        return None

    def settled_cpu_ns(self) -> int | None:
        """None: nobody has counted."""
        return None

    def mem_bytes(self) -> int | None:
        """None: no process."""
        return None

    def net_bytes(self) -> tuple[int, int] | None:
        """None: no tap."""
        return None

    def close(self) -> None:
        """Nothing is open."""
