"""Whatever happens to the reader, every line of Firecracker's metrics counts exactly once.

One suite for both channels, the regular file and the FIFO.
"""

from __future__ import annotations

import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.support.metrics import (
    KINDS,
    Bench,
    MortalAgent,
    Writer,
    close_bench,
    events,
    line,
    open_bench,
)
from vm_agent.drivers.metrics import CHANNELS, MetricsKind
from vm_agent.drivers.metrics_lines import METRICS_STATE, MetricsTotals, metrics_path

COUNT = st.integers(0, 2**40)
REAL_LINE_PADDING = 4000
"""Makes lines as long as Firecracker's with one disk and one interface."""


class MetricsMachine(RuleBasedStateMachine):
    """Firecracker writes, the agent reads, dies anywhere and starts again, in any order."""

    kind: ClassVar[MetricsKind]

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(prefix="dsm-")
        folder = Path(self.directory.name)
        path = CHANNELS[self.kind].prepare(folder)
        self.agent = MortalAgent(folder)
        self.agent.read()
        self.writer = Writer(path)
        self.complete = [0, 0]
        self.pending = b""
        self.pending_sums = (0, 0)

    @rule(read=COUNT, write=COUNT, padding=st.sampled_from([0, 3000, 40_000]))
    def flush(self, read: int, write: int, padding: int) -> None:
        """A whole line arrives, if there is room for it."""
        self.finish()
        self._write(line(read, write, padding=padding), (read, write))

    @rule(times=st.integers(2, 30))
    def flush_alike(self, times: int) -> None:
        """Lines arrive that cannot be told apart."""
        self.finish()
        for _ in range(times):
            self._write(line(1, 2), (1, 2))

    @rule(read=COUNT, write=COUNT, share=st.integers(1, 99))
    def begin(self, read: int, write: int, share: int) -> None:
        """The first part of a line arrives."""
        self.finish()
        whole = line(read, write)
        cut = len(whole) * share // 100
        if self.writer.write(whole[:cut]):
            self.pending = whole[cut:]
            self.pending_sums = (read, write)

    @rule()
    def finish(self) -> None:
        """The rest of it arrives."""
        rest, self.pending = self.pending, b""
        if rest:
            self._write(rest, self.pending_sums)

    @rule()
    def restart(self) -> None:
        """The agent was killed between two readings."""
        self.agent.die()

    @rule(steps=st.integers(0, 120))
    def read_and_die(self, steps: int) -> None:
        """The agent is killed in the middle of a reading, or of taking over."""
        self.agent.read_and_die(steps)

    @rule()
    def read(self) -> None:
        """Every complete line counts once, a torn one not yet."""
        totals = self.agent.read()
        assert [totals.disk_read_bytes, totals.disk_write_bytes] == self.complete

    @invariant()
    def never_more_than_was_written(self) -> None:
        """Nothing is invented."""
        totals = self.agent.totals
        assert totals.disk_read_bytes <= self.complete[0]
        assert totals.disk_write_bytes <= self.complete[1]

    def teardown(self) -> None:
        """All is there at the end; leave nothing."""
        self.read()
        self.agent.die()
        self.writer.close()
        self.directory.cleanup()

    def _write(self, content: bytes, sums: tuple[int, int]) -> None:
        if self.writer.write(content):
            self.complete[0] += sums[0]
            self.complete[1] += sums[1]


class FileMachine(MetricsMachine):
    """By a regular file."""

    kind = "file"


class FifoMachine(MetricsMachine):
    """By a FIFO."""

    kind = "fifo"


TestFile = FileMachine.TestCase
TestFifo = FifoMachine.TestCase
TestFile.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
TestFifo.settings = TestFile.settings


@pytest.fixture(params=KINDS)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """Each channel once."""
    made = open_bench(request.param, tmp_path)
    yield made
    close_bench(made)


@pytest.mark.parametrize("later", [0, 1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_death_at_any_line_of_the_code_costs_and_doubles_nothing(
    tmp_path: Path, kind: MetricsKind, later: int
) -> None:
    """Also where the lines after the death say just what the lines before it said."""
    same = line(5, 5, padding=REAL_LINE_PADDING)
    steps, died = 0, True
    while died:
        folder = tmp_path / str(steps)
        folder.mkdir()
        made = open_bench(kind, folder)
        assert made.writer.write(same)
        assert made.agent.read().disk_read_bytes == 5
        assert made.writer.write(same * 20)
        died = made.agent.read_and_die(steps)
        assert made.writer.write(same * later)
        made.agent.read_and_die(steps // 2)
        made.holds(5 * (21 + later))
        close_bench(made)
        steps += 1
    assert steps > 40


def test_a_channel_without_an_agent_keeps_a_hundred_lines(bench: Bench) -> None:
    """An agent that is away for an hour misses nothing: the VMM itself writes each minute."""
    bench.agent.die()
    for _ in range(100):
        assert bench.writer.write(line(7, padding=REAL_LINE_PADDING))
    bench.holds(700)


def test_what_finds_no_room_is_told_and_never_invented(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """A file takes all; a FIFO is full at some time, and loses what comes then, nothing before."""
    bench.agent.die()
    taken = sum(bench.writer.write(line(7, padding=REAL_LINE_PADDING)) for _ in range(1000))
    if bench.kind == "file":
        assert taken == 1000
    else:
        assert 150 < taken < 250
        bench.agent.lose("Resource temporarily unavailable")
        assert events(caplog) == ["metrics.lost"]
    bench.holds(7 * taken)
    assert bench.writer.write(line(1, missed=2))
    bench.holds(7 * taken + 1)
    assert bench.agent.totals.lost_flushes == (2 if bench.kind == "file" else 3)
    assert events(caplog).count("metrics.lost") == (1 if bench.kind == "file" else 2)
    assert events(caplog).count("metrics.pipe_full") == (0 if bench.kind == "file" else 1)


def test_an_end_that_no_agent_saw(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The file still has the last line; with the FIFO it is gone, and the next agent says so."""
    assert bench.writer.write(line(5))
    assert bench.agent.read().disk_read_bytes == 5
    bench.agent.die()
    assert bench.writer.write(line(6))
    bench.writer.close()
    if bench.kind == "file":
        bench.holds(11)
        assert events(caplog) == []
    else:
        bench.holds(5)
        assert events(caplog) == ["metrics.pipe_lost"]


def test_an_end_before_the_first_reading_is_noticed_too(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """A FIFO that was ever open to an agent is never empty, unless it died."""
    bench.agent.die()
    bench.writer.close()
    bench.holds(0)
    assert events(caplog) == (["metrics.pipe_lost"] if bench.kind == "fifo" else [])


def test_an_orderly_end_that_was_read_is_no_loss(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """After the line that tells of the guest's reset there is none."""
    assert bench.writer.write(line(5, resets=1))
    bench.writer.close()
    bench.holds(5)
    assert bench.agent.totals.reset_count == 1
    assert events(caplog) == []


def test_what_was_read_is_given_back(bench: Bench) -> None:
    """Neither the disk nor the pipe fills up while an agent reads."""
    for _ in range(400):
        assert bench.writer.write(line(1, 2, padding=20_000))
        bench.agent.read()
    bench.holds(400)
    assert metrics_path(bench.folder).stat().st_blocks * 512 < 2_000_000
    if bench.kind == "file":
        # Cut, it would lose Firecracker its position.
        assert metrics_path(bench.folder).stat().st_size > 8_000_000


def test_a_torn_line_costs_itself_only(bench: Bench) -> None:
    """What a full disk or pipe tears; the line that follows it on the same line still counts."""
    assert bench.writer.write(line(1) + line(5)[:200] + line(10) + line(100))
    bench.holds(111)


@pytest.mark.parametrize("kind", KINDS)
@given(garbage=st.binary(max_size=400) | st.text("\n}{x", max_size=9).map(str.encode))
def test_garbage_never_stops_the_reader(kind: MetricsKind, garbage: bytes) -> None:
    """Nothing is raised, and good lines around it count."""
    with tempfile.TemporaryDirectory(prefix="dsm-") as directory:
        made = open_bench(kind, Path(directory))
        assert made.writer.write(line(3) + garbage)
        made.agent.read_and_die(60)
        assert made.writer.write(b"\n" + line(7) + garbage + b"\n")
        made.holds(10)
        assert made.writer.write(line(7))
        made.holds(17)
        close_bench(made)


def test_a_negative_delta_is_not_believed(bench: Bench) -> None:
    """A total never goes back."""
    assert bench.writer.write(line(5, 5) + line(-3, -3))
    assert bench.agent.read() == MetricsTotals(disk_read_bytes=5, disk_write_bytes=5)


def test_an_endless_line_is_skipped(bench: Bench) -> None:
    """A broken VMM cannot make the agent read the same bytes again and again."""
    assert bench.writer.write(line(2))
    for _ in range(30):
        assert bench.writer.write(b"x" * 30_000)
        assert bench.agent.read().disk_read_bytes == 2
    assert bench.writer.write(b"\n" + line(9))
    bench.holds(11)


def test_a_long_backlog_is_read_at_once(tmp_path: Path) -> None:
    """What a last reading must find, however long no agent was there."""
    made = open_bench("file", tmp_path)
    for _ in range(80):
        assert made.writer.write(line(1, padding=250_000) * 4)
    made.holds(320)
    close_bench(made)


def test_damaged_state_is_noticed(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The reader says so in the log, counts what is left, and goes on from there."""
    assert bench.writer.write(line(1))
    assert bench.agent.read().disk_read_bytes == 1
    bench.agent.die()
    (bench.folder / METRICS_STATE).write_bytes(os.urandom(60))
    assert bench.writer.write(line(5))
    assert bench.agent.read().disk_read_bytes in ({5} if bench.kind == "fifo" else {5, 6})
    assert "metrics.state_damaged" in events(caplog)
    before = bench.agent.totals.disk_read_bytes
    assert bench.writer.write(line(8))
    bench.holds(before + 8)


def test_what_cannot_be_saved_is_counted_later(bench: Bench) -> None:
    """A reading fails while the state cannot be written, and the next one makes up for it."""
    assert bench.writer.write(line(5))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # EFBIG: Python ignores SIGXFSZ
    try:
        for _ in range(2):
            with pytest.raises(OSError, match="too large"):
                bench.agent.read()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert bench.writer.write(line(6))
    bench.holds(11)
