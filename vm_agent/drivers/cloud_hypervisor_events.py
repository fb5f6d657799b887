"""Cloud Hypervisor's event monitor: a file of JSON objects, each followed by an empty line.

The VMM opens it anew, writes it to the end of its life and never looks back. A guest can make it
write as much as it likes (each reset of a device is an event), so what has been read is given back
to the file system, and what is no event is skipped.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from vm_agent.drivers.holes import punch_hole
from vm_agent.drivers.hostile import open_plain

_log = structlog.get_logger(__name__)

EVENTS = "events.json"

MAX_EVENT_BYTES = 64 * 1024
"""No event of the VMM is a hundredth as long; what is longer is garbage."""

_READ_BYTES = 256 * 1024
_PUNCH_AFTER_BYTES = 256 * 1024
_PAGE = 4096
_END = b"\n\n"
_START = b'{\n  "timestamp"'
_NS_PER_S = 1_000_000_000


class _Since(msgspec.Struct):
    secs: int
    nanos: int


class _Event(msgspec.Struct):
    """`timestamp` is the time since the VMM's start, on its host's monotonic clock."""

    timestamp: _Since
    source: str
    event: str


_decode = msgspec.json.Decoder(_Event).decode


@dataclass(slots=True)
class History:
    """What a VMM's events say of its guest so far.

    Attributes:
        reset_ns: When the guest last began a reset, in ns since the VMM's start; -1 for never.
        panicked: The guest has panicked and not been reset since.
        shut_down: The machine has been shut down and not been booted since.
        ended: The VMM says that it ends, in order.
    """

    reset_ns: int = -1
    panicked: bool = False
    shut_down: bool = False
    ended: bool = False


class EventFile:
    """Reads one VMM's events.

    Args:
        home: Holds the file, sooner or later.
    """

    def __init__(self, home: Path) -> None:
        self._path = home / EVENTS
        self._file = -1
        self._offset = 0
        self._punched = 0
        self.history = History()

    def read(self) -> History:
        """Take in what is complete by now. An event without its end is left for the next time."""
        if self._file < 0 and not self._open():
            return self.history
        while chunk := os.pread(self._file, _READ_BYTES, self._offset):
            end = chunk.rfind(_END)
            if end < 0:
                if len(chunk) >= MAX_EVENT_BYTES:
                    self._skip(len(chunk))
                    self._offset += len(chunk)
                    continue
                break
            for block in chunk[:end].split(_END):
                self._take_block(block)
            self._offset += end + len(_END)
        self._punch()
        return self.history

    def close(self) -> None:
        """Close the file; may be called twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _open(self) -> bool:
        try:
            self._file = open_plain(self._path, os.O_RDWR)
        except FileNotFoundError:
            return False  # the VMM has just been started, or its files are removed
        try:
            # What a former agent has read is a hole. It has been settled then, so is not missed.
            self._offset = self._punched = os.lseek(self._file, 0, os.SEEK_DATA)
        except OSError:
            self._offset = self._punched = 0
        return True

    def _take_block(self, block: bytes) -> None:
        """What is between two empty lines: one event, unless a full disk has torn some."""
        before, *events = block.split(_START)
        if before.strip(b"\0\n"):
            self._skip(len(before))
        for event in events:
            try:
                self._take(_decode(_START + event))
            except msgspec.MsgspecError:
                self._skip(len(event))

    def _take(self, event: _Event) -> None:
        history = self.history
        match event.source, event.event:
            case "vm", "rebooting":
                at_ns = event.timestamp.secs * _NS_PER_S + event.timestamp.nanos
                history.reset_ns = max(history.reset_ns, at_ns)
                history.panicked = False
            case "guest", "panic":
                history.panicked = True
            case "vm", "booting" | "restoring":
                history.shut_down = False
            case "vm", "shutdown":
                history.shut_down = True
            case "vmm", "shutdown":
                history.ended = True
            case _:
                return  # the others change nothing here

    def _skip(self, length: int) -> None:
        _log.warning("event.skipped", path=str(self._path), skipped_bytes=length)

    def _punch(self) -> None:
        end = self._offset - self._offset % _PAGE
        if end - self._punched < _PUNCH_AFTER_BYTES:
            return
        punch_hole(self._file, self._punched, end - self._punched)
        self._punched = end
