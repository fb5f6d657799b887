"""Whatever happens to the reader, every line of Firecracker's metrics counts exactly once."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vm_agent.drivers.metrics_file import MetricsFile, MetricsTotals, metrics_path
from vm_agent.drivers.saved import DamagedError, SavedNumbers

COUNT = st.integers(0, 2**40)


def line(read: int = 0, write: int = 0, resets: int = 0, padding: int = 0) -> bytes:
    """A metrics line with the vendor's field order and a lot that nobody asked for."""
    blocks = {"activate_fails": 0, "read_bytes": read, "read_count": 3, "write_bytes": write}
    fields = {
        "utc_timestamp_ms": 1_795_479_956_428,
        "api_server": {"process_startup_time_us": 1, "padding": "p" * padding},
        "block_disk": blocks,
        "block": blocks,
        "i8042": {"error_count": 0, "reset_count": resets},
        "latencies_us": {"pause_vm": 7},
    }
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


class MetricsMachine(RuleBasedStateMachine):
    """Firecracker writes, the agent reads, dies and starts again, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(prefix="dsm-")
        self.run_dir = Path(self.directory.name)
        self.file = MetricsFile(self.run_dir, self.run_dir)
        self.writer = metrics_path(self.run_dir).open("r+b", buffering=0)
        self.complete = [0, 0]
        self.pending: list[bytes] = []
        self.pending_sums = (0, 0)
        self.last = MetricsTotals()

    @rule(read=COUNT, write=COUNT, padding=st.sampled_from([0, 3000, 40_000]))
    def flush(self, read: int, write: int, padding: int) -> None:
        """A whole line arrives."""
        self.finish()
        self.writer.write(line(read, write, padding=padding))
        self.complete[0] += read
        self.complete[1] += write

    @rule(read=COUNT, write=COUNT, share=st.integers(1, 99))
    def begin(self, read: int, write: int, share: int) -> None:
        """The first part of a line arrives."""
        self.finish()
        whole = line(read, write)
        cut = len(whole) * share // 100
        self.writer.write(whole[:cut])
        self.pending = [whole[cut:]]
        self.pending_sums = (read, write)

    @rule()
    def finish(self) -> None:
        """The rest of it arrives."""
        if self.pending:
            self.writer.write(self.pending.pop())
            self.complete[0] += self.pending_sums[0]
            self.complete[1] += self.pending_sums[1]

    @rule()
    def restart(self) -> None:
        """The agent was killed; the new one knows nothing but the files."""
        self.file.close()
        self.file = MetricsFile(self.run_dir, self.run_dir)

    @rule()
    def read(self) -> None:
        """Every complete line counts once, a torn one not yet."""
        totals = self.file.read()
        assert [totals.disk_read_bytes, totals.disk_write_bytes] == self.complete

    @invariant()
    def never_more_than_was_written(self) -> None:
        """Nothing is invented."""
        assert self.file.totals.disk_read_bytes <= self.complete[0]
        assert self.file.totals.disk_write_bytes <= self.complete[1]

    def teardown(self) -> None:
        """Leave nothing."""
        self.file.close()
        self.file.close()
        self.writer.close()
        self.directory.cleanup()


TestMetricsFile = MetricsMachine.TestCase
TestMetricsFile.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run directory."""
    return tmp_path


def test_what_was_read_is_given_back_to_the_file_system(run_dir: Path) -> None:
    """The file keeps its length, Firecracker its position, the disk its space."""
    file = MetricsFile(run_dir, run_dir)
    with metrics_path(run_dir).open("r+b", buffering=0) as writer:
        for _ in range(200):
            writer.write(line(1, 2, padding=20_000))
            file.read()
    assert (file.totals.disk_read_bytes, file.totals.disk_write_bytes) == (200, 400)
    status = metrics_path(run_dir).stat()
    assert status.st_size > 4_000_000
    assert status.st_blocks * 512 < 1_000_000
    file.close()


def test_a_line_torn_by_a_full_disk_costs_itself_only(run_dir: Path) -> None:
    """The line that follows it on the same line still counts."""
    metrics_path(run_dir).write_bytes(line(1, 1) + line(5, 5)[:200] + line(10, 10) + line(100, 100))
    file = MetricsFile(run_dir, run_dir)
    assert file.read().disk_read_bytes == 111
    file.close()


@given(st.binary(max_size=400))
def test_garbage_in_the_file_never_stops_the_reader(garbage: bytes) -> None:
    """Nothing is raised, and the next good line counts."""
    with tempfile.TemporaryDirectory(prefix="dsm-") as directory:
        metrics_path(Path(directory)).write_bytes(garbage + b"\n" + line(7, 7))
        file = MetricsFile(Path(directory), Path(directory))
        assert file.read().disk_read_bytes == 7
        file.close()


def test_a_negative_delta_is_not_believed(run_dir: Path) -> None:
    """A total never goes back."""
    metrics_path(run_dir).write_bytes(line(5, 5) + line(-3, -3))
    file = MetricsFile(run_dir, run_dir)
    assert file.read() == MetricsTotals(disk_read_bytes=5, disk_write_bytes=5)
    file.close()


def test_an_endless_line_is_skipped(run_dir: Path) -> None:
    """A broken VMM cannot make the agent read the same megabytes again and again."""
    metrics_path(run_dir).write_bytes(b"x" * 1_000_000 + b"\n" + line(9, 9))
    file = MetricsFile(run_dir, run_dir)
    assert file.read().disk_read_bytes == 9
    file.close()


def test_damaged_state_is_noticed(run_dir: Path) -> None:
    """The reader says so in the log and counts what is left."""
    metrics_path(run_dir).write_bytes(line(5, 5))
    (run_dir / "metrics.state").write_bytes(os.urandom(60))
    file = MetricsFile(run_dir, run_dir)
    assert file.read().disk_read_bytes == 5
    file.close()


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8))
def test_saved_numbers_come_back(numbers: list[int]) -> None:
    """Save, load, in another process too."""
    with tempfile.TemporaryDirectory(prefix="dsm-") as directory:
        path = Path(directory) / "state"
        saved = SavedNumbers(path, len(numbers))
        assert saved.load() is None
        saved.save(*reversed(numbers))
        saved.save(*numbers)
        other = SavedNumbers(path, len(numbers))
        assert other.load() == tuple(numbers)
        for each in (saved, other):
            each.close()


@given(st.data())
def test_any_change_to_saved_numbers_is_noticed(data: st.DataObject) -> None:
    """One flipped bit, a cut, an addition."""
    with tempfile.TemporaryDirectory(prefix="dsm-") as directory:
        path = Path(directory) / "state"
        saved = SavedNumbers(path, 3)
        saved.save(1, 2, 3)
        good = path.read_bytes()
        at = data.draw(st.integers(0, len(good) - 1))
        flipped = bytearray(good)
        flipped[at] ^= 1 << data.draw(st.integers(0, 7))
        cut = good[: at or 1]
        path.write_bytes(data.draw(st.sampled_from([bytes(flipped), cut, good + b"x"])))
        with pytest.raises(DamagedError):
            saved.load()
        saved.close()
