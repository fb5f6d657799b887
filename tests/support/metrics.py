"""Firecracker as a writer of metrics, and an agent that can be killed at any line of its code."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from vm_agent.drivers import metrics
from vm_agent.drivers.metrics import CHANNELS, MetricsKind, open_metrics
from vm_agent.drivers.metrics_lines import METRICS_STATE, MetricsChannel, MetricsTotals

KINDS: tuple[MetricsKind, ...] = ("file", "fifo")
_DRIVERS = str(Path(metrics.__file__).parent)


def line(
    read: int = 0, write: int = 0, *, resets: int = 0, missed: int = 0, padding: int = 0
) -> bytes:
    """A metrics line with the vendor's field order and a lot that nobody asked for.

    All are of the same millisecond, as most lines of a busy Firecracker are.
    """
    blocks = {"activate_fails": 0, "read_bytes": read, "read_count": 3, "write_bytes": write}
    fields = {
        "utc_timestamp_ms": 1_795_479_956_428,
        "api_server": {"process_startup_time_us": 1, "padding": "p" * padding},
        "block_disk": blocks,
        "block": blocks,
        "i8042": {"error_count": 0, "reset_count": resets},
        "logger": {"missed_metrics_count": missed, "metrics_fails": 0},
        "latencies_us": {"pause_vm": 7},
    }
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


class Writer:
    """The VMM's side: opens and writes as Firecracker does."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def write(self, content: bytes) -> bool:
        """Write it all; False if only a part of it, or nothing, found room."""
        try:
            while content:
                content = content[os.write(self._descriptor, content) :]
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """The VMM ends."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class KilledError(BaseException):
    """The agent dies here."""


class MortalAgent:
    """Reads one VMM's channel until it is killed; the next reading is a new agent's.

    Args:
        folder: Holds channel and state.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._channel: MetricsChannel | None = None

    @property
    def totals(self) -> MetricsTotals:
        """As a new agent would find them, if there is none."""
        return self._open().totals

    def read(self) -> MetricsTotals:
        """Open, if need be, and read."""
        return self._open().read()

    def lose(self, reason: str) -> None:
        """The VMM has answered a flush with an error."""
        self._open().lose(reason)

    def read_and_die(self, steps: int) -> bool:
        """Be killed before that line of the driver's code; False if there are not so many."""
        before = _descriptors()
        try:
            with _killed_after(steps):
                self.read()
        except KilledError:
            self.die()
            for descriptor in _descriptors() - before:
                os.close(descriptor)
            return True
        return False

    def die(self) -> None:
        """The kernel closes what the agent had open."""
        if self._channel is not None:
            self._channel.close()
            self._channel.close()
            self._channel = None

    def _open(self) -> MetricsChannel:
        if self._channel is None:
            self._channel = open_metrics(self.folder, self.folder / METRICS_STATE)
        return self._channel


@dataclass(slots=True)
class Bench:
    """A VMM that writes, an agent that reads."""

    kind: MetricsKind
    folder: Path
    agent: MortalAgent
    writer: Writer

    def holds(self, read_bytes: int) -> None:
        """Whether this agent, and the next one, have counted so much."""
        assert self.agent.read().disk_read_bytes == read_bytes
        self.agent.die()
        assert self.agent.read().disk_read_bytes == read_bytes


def open_bench(kind: MetricsKind, folder: Path) -> Bench:
    """As things are when a VMM has just been started."""
    path = CHANNELS[kind].prepare(folder)
    agent = MortalAgent(folder)
    assert agent.read() == MetricsTotals()
    return Bench(kind, folder, agent, Writer(path))


def close_bench(bench: Bench) -> None:
    """Both end."""
    bench.agent.die()
    bench.writer.close()


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Names of the events logged so far."""
    return [record.msg["event"] for record in caplog.records if isinstance(record.msg, dict)]


@contextmanager
def _killed_after(steps: int) -> Iterator[None]:
    left = steps

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(_DRIVERS):
            return None
        if event == "line":
            left -= 1
            if left < 0:
                raise KilledError
        return trace

    former = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(former)


def _descriptors() -> set[int]:
    """What this process has open, the directory being read excepted."""
    found = {int(name) for name in os.listdir("/proc/self/fd")}  # noqa: PTH208
    return {number for number in found if _is_open(number)}


def _is_open(number: int) -> bool:
    # Asked thousands of times, of all that chDB has open besides: by number is much the fastest.
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
