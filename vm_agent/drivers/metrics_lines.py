"""Firecracker's metrics: what a line says, the sums over lines, and what a channel for them is.

Firecracker writes a JSON line per flush, in one write(2); what is taken from it here are *deltas*
since the line before (`SharedIncMetric` in the vendor's sources), so every line must count exactly
once, also when the agent is killed between any two instructions. Lines cannot be told apart by
what they say: at full speed most have the same millisecond as the one before, and all else too.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import msgspec
import structlog

from vm_agent.drivers.saved import SavedNumbers

_log = structlog.get_logger(__name__)

METRICS = "metrics.json"
METRICS_STATE = "metrics.state"

_LINE_START = b'{"utc_timestamp_ms"'


@dataclass(slots=True)
class MetricsTotals:
    """Sums over all lines read so far.

    Attributes:
        reset_count: Times the guest pulled the reset line of the keyboard controller.
        cpu_ns: Only the simulator reports it, and the network bytes.
        lost_flushes: Lines that the VMM could not write, as far as it said so: what they would
            have told is in no other line.
    """

    disk_read_bytes: int = 0
    disk_write_bytes: int = 0
    reset_count: int = 0
    cpu_ns: int = 0
    net_rx_bytes: int = 0
    net_tx_bytes: int = 0
    lost_flushes: int = 0

    def numbers(self) -> tuple[int, int, int, int, int, int, int]:
        """All of them, in order. `dataclasses.astuple` takes ten times as long."""
        return (
            self.disk_read_bytes,
            self.disk_write_bytes,
            self.reset_count,
            self.cpu_ns,
            self.net_rx_bytes,
            self.net_tx_bytes,
            self.lost_flushes,
        )


class _Block(msgspec.Struct):
    read_bytes: int = 0
    write_bytes: int = 0


class _Keyboard(msgspec.Struct):
    reset_count: int = 0


class _Logger(msgspec.Struct):
    # Counts the VMM's own flushes (each minute), not those that were asked for; and where several
    # failed in a row it tells of the last one only, since the count went the way of the others.
    missed_metrics_count: int = 0


class _Simulated(msgspec.Struct):
    cpu_ns: int = 0
    net_rx_bytes: int = 0
    net_tx_bytes: int = 0


class _Line(msgspec.Struct):
    """The few fields of a line that are billed or decide something."""

    block: _Block = msgspec.field(name="block_disk", default_factory=_Block)
    keyboard: _Keyboard = msgspec.field(name="i8042", default_factory=_Keyboard)
    logger: _Logger = msgspec.field(default_factory=_Logger)
    simulated: _Simulated = msgspec.field(default_factory=_Simulated)


_decoder = msgspec.json.Decoder(_Line)


class MetricsChannel(ABC):
    """How the lines of one VMM come to the agent, and to the next agent after it was killed.

    Made by `vm_agent.drivers.metrics.open_metrics`.

    Attributes:
        path: What the VMM writes to.
        totals: As of the last `read`.

    Args:
        descriptor: Open for reading and writing; the channel closes it, also when it cannot be
            made.
        path: Where that was opened. Never opened again: the VMM may own the folder.
        state: File for what must outlive the agent, out of the VMM's reach.

    Raises:
        OSError: The state cannot be had.
    """

    places: ClassVar[int]
    """How many numbers are saved before the totals."""

    def __init__(self, descriptor: int, path: Path, state: Path) -> None:
        self.path = path
        self.totals = MetricsTotals()
        self._descriptor = descriptor
        try:
            self._state = SavedNumbers(state, self.places + len(fields(MetricsTotals)))
        except OSError:
            os.close(descriptor)
            raise

    @staticmethod
    @abstractmethod
    def prepare(folder: Path) -> Path:
        """Make what a VMM is to write to, before it starts; returns its path.

        Raises:
            OSError: It cannot be made, or something is there already.
        """

    @abstractmethod
    def read(self) -> MetricsTotals:
        """Count the lines that are complete by now, and return the sums.

        A last line without its end is left for the next time. Does not block, and does a bounded
        amount of work whatever the VMM writes.

        Raises:
            OSError: The state could not be saved; the next reading tries again.
        """

    def lose(self, reason: str) -> None:
        """Take down that a line could not be written. Saved with the next one that comes."""
        self.totals.lost_flushes += 1
        _log.error("metrics.lost", path=str(self.path), lost_flushes=1, reason=reason)

    def close(self) -> None:
        """Close the descriptors; may be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._state.close()
            self._descriptor = -1

    def _load(self) -> tuple[int, ...] | None:
        """What was saved before the totals, and take over the totals; None if nothing was.

        Raises:
            DamagedError: See `SavedNumbers`.
        """
        saved = self._state.load()
        if saved is None:
            return None
        self.totals = MetricsTotals(*saved[self.places :])
        return saved[: self.places]

    def _save(self, places: tuple[int, ...], totals: MetricsTotals) -> None:
        """Save all in one write, and only then let `totals` be the totals."""
        self._state.save(*places, *totals.numbers())
        self.totals = totals


def count_lines(content: bytes, before: MetricsTotals, path: Path) -> MetricsTotals:
    """The sums with some lines more.

    Args:
        content: Lines, each with its end.
        before: The sums without them.
        path: Where they come from, for the log.
    """
    totals = MetricsTotals(*before.numbers())
    for line in content[:-1].split(b"\n"):
        _count(line, totals, path)
    if lost := totals.lost_flushes - before.lost_flushes:
        _log.error("metrics.lost", path=str(path), lost_flushes=lost, reason="told by the VMM")
    return totals


def _count(line: bytes, totals: MetricsTotals, path: Path) -> None:
    try:
        metrics = _decoder.decode(line)
    except msgspec.MsgspecError:
        # A full disk or pipe can tear a line; the next one then follows on the same line.
        start = line.rfind(_LINE_START)
        if start <= 0:
            _log.warning("metrics.skipped", path=str(path), skipped_bytes=len(line))
        else:
            _log.warning("metrics.skipped", path=str(path), skipped_bytes=start)
            _count(line[start:], totals, path)
        return
    # A reading is never inflated, and a total never goes back: not even for a broken VMM.
    totals.disk_read_bytes += max(metrics.block.read_bytes, 0)
    totals.disk_write_bytes += max(metrics.block.write_bytes, 0)
    totals.reset_count += max(metrics.keyboard.reset_count, 0)
    totals.cpu_ns += max(metrics.simulated.cpu_ns, 0)
    totals.net_rx_bytes += max(metrics.simulated.net_rx_bytes, 0)
    totals.net_tx_bytes += max(metrics.simulated.net_tx_bytes, 0)
    totals.lost_flushes += max(metrics.logger.missed_metrics_count, 0)


def metrics_path(folder: Path) -> Path:
    """What the VMM is told to write its metrics to."""
    return folder / METRICS
