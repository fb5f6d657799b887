"""Firecracker's metrics by a regular file: no VMM's end and no absence of the agent loses a line.

Totals and offset are saved together, in one small write, and only then the read part of the file
is given back to the file system by punching a hole: Firecracker keeps its own write position, so
the file is never cut. A full disk would lose lines, so space for the next ones is reserved.
"""

from __future__ import annotations

import os
from pathlib import Path

import structlog

from vm_agent.drivers.holes import punch_hole, reserve
from vm_agent.drivers.metrics_lines import (
    MetricsChannel,
    MetricsTotals,
    count_lines,
    metrics_path,
)
from vm_agent.drivers.saved import DamagedError

_log = structlog.get_logger(__name__)

_READ_BYTES = 256 * 1024
_MOST_SKIPPED_BYTES = 64 * 1024 * 1024
_PUNCH_AFTER_BYTES = 256 * 1024
_RESERVED_BYTES = 512 * 1024
_PAGE = 4096


class MetricsFile(MetricsChannel):
    """See `MetricsChannel`. The state is the offset up to which the totals go."""

    places = 1

    def __init__(self, descriptor: int, path: Path, state: Path) -> None:
        super().__init__(descriptor, path, state)
        self._offset = 0
        self._punched = 0
        self._reserved = True
        try:
            self._restore()
        except OSError:
            self.close()
            raise

    @staticmethod
    def prepare(folder: Path) -> Path:
        """An empty file. See `MetricsChannel`."""
        path = metrics_path(folder)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        return path

    def read(self) -> MetricsTotals:
        """See `MetricsChannel`. All lines there are by now; of what is none, at most 64 MiB."""
        size = os.fstat(self._descriptor).st_size
        skipped = 0
        while self._offset < size and skipped < _MOST_SKIPPED_BYTES:
            length = min(_READ_BYTES, size - self._offset)
            chunk = os.pread(self._descriptor, length, self._offset)
            end = chunk.rfind(b"\n") + 1
            if end:
                self._advance(end, count_lines(chunk[:end], self.totals, self.path))
            elif len(chunk) == _READ_BYTES:
                # No line is that long: only a broken VMM writes this, or makes a hole.
                skipped += len(chunk)
                _log.warning("metrics.skipped", path=str(self.path), skipped_bytes=len(chunk))
                self._advance(len(chunk), self.totals)
            else:
                break
        return self.totals

    def _advance(self, length: int, totals: MetricsTotals) -> None:
        self._save((self._offset + length,), totals)
        self._offset += length
        end = self._offset - self._offset % _PAGE
        if end - self._punched >= _PUNCH_AFTER_BYTES:
            # Not every file system can (tmpfs, ext4, xfs, btrfs do); then the file stays long.
            punch_hole(self._descriptor, self._punched, end - self._punched)
            self._punched = end
            self._reserve(end)

    def _restore(self) -> None:
        try:
            places = self._load()
        except DamagedError as error:
            # What was counted in the part that is punched away is gone: say so, and go on with
            # what is there.
            _log.error("metrics.state_damaged", path=str(self.path), error=str(error))
            self._offset = self._first_data()
            return
        if places is not None:
            (self._offset,) = places
        else:
            # Now, since on a full disk there would be no room for it.
            self._save((0,), self.totals)
            self._reserve(0)

    def _first_data(self) -> int:
        """Where the part of the file that has not been punched away begins."""
        try:
            start = os.lseek(self._descriptor, 0, os.SEEK_DATA)
        except OSError:
            return os.fstat(self._descriptor).st_size
        return start

    def _reserve(self, start: int) -> None:
        """Take disk space for a hundred lines more: on a full disk, just what was given back."""
        done = reserve(self._descriptor, start, _RESERVED_BYTES)
        if self._reserved and not done:
            _log.warning("metrics.not_reserved", path=str(self.path), bytes=_RESERVED_BYTES)
        self._reserved = done
