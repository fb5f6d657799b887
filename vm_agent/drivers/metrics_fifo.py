"""Firecracker's metrics by a FIFO: bounded memory instead of a file, whatever the VMM does.

The pipe lives as long as the agent or the VMM has it open: Firecracker opens it for reading and
writing, without blocking, so it outlives either of them, but not both. It holds 1 MiB, some 170
lines; Firecracker resets its deltas *before* it writes, so a line for which there is no room is
lost. A pipe that is found full, torn lines and a pipe that died with its content are logged.

A reading copies the content without taking it (tee(2)), counts, saves the totals, and only then
takes from the pipe what it counted. An agent that dies before the last step must be told from one
that dies after it, and the lines cannot tell: two of the same millisecond are often the same. So
the *end* of the last counted line always stays in the pipe, as a mark. It is one byte, a newline;
or two, of which the first is no newline, where the pipe began with a newline before. The mark is
saved with the totals: if the pipe begins like the saved mark, what was counted has been taken.
Taking is one splice(2) to /dev/null, which the kernel does under the pipe's lock, whole or not at
all. Neither clocks nor contents matter.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import struct
import termios
from pathlib import Path

import structlog

from vm_agent.drivers.metrics_lines import (
    MetricsChannel,
    MetricsTotals,
    count_lines,
    metrics_path,
)
from vm_agent.drivers.saved import DamagedError

_log = structlog.get_logger(__name__)

PIPE_BYTES = 1024 * 1024
"""What an unprivileged process may ask for (fs.pipe-max-size)."""

_PEEK_BYTES = 64 * 1024
"""What a new pipe holds: 16 buffers, of which a line takes three at most."""

_MOST_PEEKS = 64
_NEWLINE = b"\n"
_libc = ctypes.CDLL(None, use_errno=True)
_libc.tee.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_uint)
_libc.tee.restype = ctypes.c_ssize_t


class MetricsFifo(MetricsChannel):
    """See `MetricsChannel`. The state is the mark's length, and the bytes to take from the pipe."""

    places = 2

    def __init__(self, descriptor: int, path: Path, state: Path) -> None:
        super().__init__(descriptor, path, state)
        self._mark = 0
        self._due = 0
        self._size = 0
        self._nowhere = -1
        try:
            # Kept, so that nothing can hinder the last step.
            self._nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            self._widen()
            self._restore()
        except OSError:
            self.close()
            raise

    @staticmethod
    def prepare(folder: Path) -> Path:
        """A FIFO. See `MetricsChannel`."""
        path = metrics_path(folder)
        os.mkfifo(path, 0o600)
        return path

    def read(self) -> MetricsTotals:
        """See `MetricsChannel`. At most 4 MiB at a time."""
        self._take()
        if self._is_full():
            _log.error("metrics.pipe_full", path=str(self.path))
        for _ in range(_MOST_PEEKS):
            waiting = self._waiting()
            if waiting <= self._mark:
                break
            if not (content := self._peek()):
                break
            end = _end_of_last_line(content)
            if end > self._mark:
                totals = count_lines(content[self._mark : end], self.totals, self.path)
                mark = 2 if content.startswith(_NEWLINE) else 1
                self._advance(mark, end - mark, totals)
            elif len(content) < waiting:
                # No line is that long: only a broken VMM writes this.
                _log.warning("metrics.skipped", path=str(self.path), skipped_bytes=len(content))
                self._advance(0, len(content), self.totals)
            else:
                break
        return self.totals

    def close(self) -> None:
        """See `MetricsChannel`."""
        super().close()
        if self._nowhere >= 0:
            os.close(self._nowhere)
            self._nowhere = -1

    def _advance(self, mark: int, length: int, totals: MetricsTotals) -> None:
        self._save((mark, length), totals)
        self._mark, self._due = mark, length
        self._take()

    def _take(self) -> None:
        while self._due:
            try:
                self._due -= os.splice(
                    self._descriptor, self._nowhere, self._due, flags=os.SPLICE_F_NONBLOCK
                )
            except BlockingIOError:
                # Only the VMM itself can have taken it, and the mark too.
                _log.error("metrics.pipe_lost", path=str(self.path))
                self._mark = self._due = 0
                self._save((0, 0), self.totals)

    def _waiting(self) -> int:
        (count,) = struct.unpack("i", fcntl.ioctl(self._descriptor, termios.FIONREAD, bytes(4)))
        return int(count)

    def _is_full(self) -> bool:
        """Whether there is no room for a byte, as always after a line that was lost or torn."""
        if self._waiting() < self._size // 4:
            return False  # short lines share buffers, so a full pipe holds more than that
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        return not poll.poll(0)

    def _peek(self) -> bytes:
        """The content, or the first 16 buffers of it, which stays where it is."""
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ) < _PEEK_BYTES:
                # pipe(7): fs.pipe-user-pages-soft. A line might not fit.
                raise OSError(errno.ENOBUFS, "this user has too many pipes to open a whole one")
            copied = _libc.tee(self._descriptor, writer, _PEEK_BYTES, os.SPLICE_F_NONBLOCK)
            if copied >= 0:
                return os.read(reader, copied)
            number = ctypes.get_errno()
            if number == errno.EAGAIN:
                return b""
            raise OSError(number, os.strerror(number), str(self.path))
        finally:
            os.close(reader)
            os.close(writer)

    def _widen(self) -> None:
        self._size = fcntl.fcntl(self._descriptor, fcntl.F_GETPIPE_SZ)
        if self._size >= PIPE_BYTES:
            return
        try:
            self._size = fcntl.fcntl(self._descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except OSError as error:
            _log.warning(
                "metrics.pipe_small", path=str(self.path), bytes=self._size, error=str(error)
            )

    def _restore(self) -> None:
        waiting = self._waiting()
        try:
            places = self._load()
        except DamagedError as error:
            # What was counted and taken is gone: say so, and go on with what is there.
            _log.error("metrics.state_damaged", path=str(self.path), error=str(error))
            return
        if places is None:
            if not waiting:
                # A first mark, before the VMM is there: a pipe that is empty later has died.
                os.write(self._descriptor, _NEWLINE)
                self._save((1, 0), self.totals)
                self._mark = 1
        elif places[0] and not waiting:
            # Agent and VMM were both gone. The line of an orderly exit is the last there is.
            if not self.totals.reset_count:
                _log.error("metrics.pipe_lost", path=str(self.path))
            self._save((0, 0), self.totals)
        elif places[0]:
            self._mark, length = places
            taken = self._peek().startswith(_NEWLINE) == (self._mark == 1)
            self._due = 0 if taken else length


def _end_of_last_line(content: bytes) -> int:
    """Where the last whole line that says anything ends; 0 if there is none."""
    last = content[: content.rfind(_NEWLINE) + 1].rstrip(_NEWLINE)
    return len(last) + 1 if last else 0
