"""Rows to frames: one column per field, numbered without holes within a run."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from uuid import UUID

from schemas.frames import MAX_ROWS, Frame
from schemas.vms import METERS, STATE_NUMBERS
from vm_agent.metering import Row
from vm_agent.ticks import Tick


class FrameBuilder:
    """Numbers and builds the frames of one run.

    Args:
        host: The host's id.
        run_id: New at every agent start.
        max_rows: VMs in one frame; more are split over frames of the same tick.
    """

    def __init__(self, host: str, run_id: UUID, max_rows: int = MAX_ROWS) -> None:
        self._host = host
        self._run_id = run_id
        self._max_rows = max_rows
        self._seq = 0

    def build(
        self,
        tick: Tick,
        sampled_at_ns: int,
        rows: Sequence[tuple[UUID, Row]],
        refresh_ms: int = 0,
    ) -> list[Frame]:
        """The frames of one tick: at least one, so that a host without VMs is heard too.

        Args:
            tick: The tick.
            sampled_at_ns: The wall clock after the readings, Unix ns.
            rows: All VMs.
            refresh_ms: How old device counters may be; see `Frame`.
        """
        frames = []
        for start in range(0, max(1, len(rows)), self._max_rows):
            part = rows[start : start + self._max_rows]
            frames.append(self._frame(tick, sampled_at_ns, part, refresh_ms))
            tick = Tick(tick.tick_ms, tick.late_ns, 0, tick.offset_ns)
        return frames

    def _frame(
        self, tick: Tick, sampled_at_ns: int, rows: Sequence[tuple[UUID, Row]], refresh_ms: int
    ) -> Frame:
        columns = zip(*[row.values for _, row in rows], strict=True) if rows else [()] * len(METERS)
        counters = [array("Q", column) for column in columns]
        frame = Frame(
            host=self._host,
            run_id=self._run_id,
            seq=self._seq,
            tick_ms=tick.tick_ms,
            sampled_at_ns=sampled_at_ns,
            clock_offset_ns=tick.offset_ns,
            late_ns=tick.late_ns,
            missed_ticks=tick.missed,
            vm_ids=b"".join([vm_id.bytes for vm_id, _ in rows]),
            incarnations=_little(array("I", [row.incarnation for _, row in rows])),
            states=bytes([STATE_NUMBERS[row.state] for _, row in rows]),
            flags=bytes([row.flags for _, row in rows]),
            mem_bytes=_little(array("Q", [row.mem_bytes for _, row in rows])),
            uptime_ms=_little(counters[0]),
            cpu_ns=_little(counters[1]),
            mem_kib_ms=_little(counters[2]),
            disk_read_bytes=_little(counters[3]),
            disk_write_bytes=_little(counters[4]),
            net_rx_bytes=_little(counters[5]),
            net_tx_bytes=_little(counters[6]),
            refresh_ms=refresh_ms,
        )
        self._seq += 1
        return frame


def _little(column: array[int]) -> bytes:
    if sys.byteorder == "big":
        column.byteswap()
    return column.tobytes()
