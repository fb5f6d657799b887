"""Firecracker's metrics file, read without losing or repeating a byte.

Firecracker appends a JSON line per flush; what this module takes from it are *deltas* since the
line before (`SharedIncMetric` in the vendor's sources), so every line must count exactly once,
also when the agent is killed between any two instructions. Hence totals and offset are saved
together, in one small write, and only then the read part of the file is given back to the file
system by punching a hole: Firecracker keeps its own write position, so the file is never cut.
"""

from __future__ import annotations

import os
from dataclasses import astuple, dataclass
from pathlib import Path

import msgspec
import structlog

from vm_agent.drivers.holes import punch_hole
from vm_agent.drivers.hostile import open_plain
from vm_agent.drivers.saved import DamagedError, SavedNumbers

_log = structlog.get_logger(__name__)

METRICS = "metrics.json"
METRICS_STATE = "metrics.state"

_READ_BYTES = 256 * 1024
_PUNCH_AFTER_BYTES = 256 * 1024
_PAGE = 4096
_LINE_START = b'{"utc_timestamp_ms"'


@dataclass(slots=True)
class MetricsTotals:
    """Sums over all lines read so far.

    Attributes:
        reset_count: Times the guest pulled the reset line of the keyboard controller.
        cpu_ns: Only the simulator reports it, and the network bytes.
    """

    disk_read_bytes: int = 0
    disk_write_bytes: int = 0
    reset_count: int = 0
    cpu_ns: int = 0
    net_rx_bytes: int = 0
    net_tx_bytes: int = 0


class _Block(msgspec.Struct):
    read_bytes: int = 0
    write_bytes: int = 0


class _Keyboard(msgspec.Struct):
    reset_count: int = 0


class _Simulated(msgspec.Struct):
    cpu_ns: int = 0
    net_rx_bytes: int = 0
    net_tx_bytes: int = 0


class _Line(msgspec.Struct):
    """The few fields of a line that are billed or decide something."""

    block: _Block = msgspec.field(name="block_disk", default_factory=_Block)
    keyboard: _Keyboard = msgspec.field(name="i8042", default_factory=_Keyboard)
    simulated: _Simulated = msgspec.field(default_factory=_Simulated)


_decoder = msgspec.json.Decoder(_Line)


class MetricsFile:
    """Reads one VMM's metrics file, and goes on where a former agent stopped.

    Args:
        folder: Holds the metrics file. It may belong to the VMM, which may be hostile.
        state_dir: Holds the state saved by this class; belongs to the agent.
    """

    def __init__(self, folder: Path, state_dir: Path) -> None:
        self.path = metrics_path(folder)
        self._state = SavedNumbers(state_dir / METRICS_STATE, 7)
        try:
            self._file = open_plain(self.path, os.O_RDWR | os.O_CREAT)
        except OSError:
            self._state.close()
            raise
        self._offset = 0
        self._punched = 0
        self.totals = MetricsTotals()
        self._restore()

    def read(self) -> MetricsTotals:
        """Count the lines that are complete by now, and return the sums.

        A last line without its end is left for the next time.
        """
        before = self._offset
        while chunk := os.pread(self._file, _READ_BYTES, self._offset):
            end = chunk.rfind(b"\n") + 1
            if end == 0:
                if len(chunk) == _READ_BYTES:
                    # No line is that long: only a broken VMM writes this.
                    self._offset += len(chunk)
                    _log.warning("metrics.skipped", path=str(self.path), skipped_bytes=len(chunk))
                    continue
                break
            for line in chunk[: end - 1].split(b"\n"):
                self._count(line)
            self._offset += end
        if self._offset != before:
            self._save()
            self._punch()
        return self.totals

    def close(self) -> None:
        """Close the descriptors; may be called twice."""
        if self._file >= 0:
            os.close(self._file)
            self._state.close()
            self._file = -1

    def _count(self, line: bytes) -> None:
        try:
            metrics = _decoder.decode(line)
        except msgspec.MsgspecError:
            # A full disk can tear a line; the next one then follows on the same line.
            start = line.rfind(_LINE_START)
            if start <= 0:
                _log.warning("metrics.skipped", path=str(self.path), skipped_bytes=len(line))
            else:
                _log.warning("metrics.skipped", path=str(self.path), skipped_bytes=start)
                self._count(line[start:])
            return
        totals = self.totals
        # A reading is never inflated, and a total never goes back: not even for a broken VMM.
        totals.disk_read_bytes += max(metrics.block.read_bytes, 0)
        totals.disk_write_bytes += max(metrics.block.write_bytes, 0)
        totals.reset_count += max(metrics.keyboard.reset_count, 0)
        totals.cpu_ns += max(metrics.simulated.cpu_ns, 0)
        totals.net_rx_bytes += max(metrics.simulated.net_rx_bytes, 0)
        totals.net_tx_bytes += max(metrics.simulated.net_tx_bytes, 0)

    def _restore(self) -> None:
        try:
            saved = self._state.load()
        except DamagedError as error:
            # What was counted in the part that is punched away is gone: say so, and go on with
            # what is there.
            _log.error("metrics.state_damaged", path=str(self.path), error=str(error))
            self._offset = self._first_data()
            return
        if saved is not None:
            self._offset, *sums = saved
            self.totals = MetricsTotals(*sums)

    def _first_data(self) -> int:
        """Where the part of the file that has not been punched away begins."""
        try:
            start = os.lseek(self._file, 0, os.SEEK_DATA)
        except OSError:
            return os.fstat(self._file).st_size
        return start

    def _save(self) -> None:
        self._state.save(self._offset, *astuple(self.totals))

    def _punch(self) -> None:
        end = self._offset - self._offset % _PAGE
        if end - self._punched < _PUNCH_AFTER_BYTES:
            return
        # Where the file system cannot, the file just stays long.
        punch_hole(self._file, self._punched, end - self._punched)
        self._punched = end


def metrics_path(run_dir: Path) -> Path:
    """The file that the VMM appends its metrics to."""
    return run_dir / METRICS
