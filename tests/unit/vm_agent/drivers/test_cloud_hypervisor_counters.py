"""A guest's bytes over all its resets: never inflated, never going back, none lost once read."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vm_agent.drivers.abc import DriverError
from vm_agent.drivers.cloud_hypervisor_api import BlockCounters
from vm_agent.drivers.cloud_hypervisor_counters import COUNTERS, GuestCounters

START_TICKS = 1000
STARTED_NS = START_TICKS * (1_000_000_000 // os.sysconf("SC_CLK_TCK"))
MS = 1_000_000
BYTES = st.integers(0, 2**30)


class GuestMachine(RuleBasedStateMachine):
    """A guest works and resets, the agent reads, dies and starts again, in any order.

    The VMM's own time begins up to 30 ms after its process, and its events take a while to be
    written: the reader knows neither.
    """

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(prefix="dsc-")
        self.counters = GuestCounters(Path(self.directory.name), START_TICKS)
        self.offset_ns = 12 * MS
        self.now_ns = STARTED_NS + 100 * MS
        self.machine = [0, 0]
        self.truth = [0, 0]
        self.read_before = [0, 0]
        self.read_now = [0, 0]
        self.reset_ns = self.told_ns = -1
        self.read_at_ns = 0
        self.in_doubt = False
        self.last = (0, 0)

    @rule(read=BYTES, write=BYTES)
    def work(self, read: int, write: int) -> None:
        """The guest does some I/O."""
        for index, number in enumerate((read, write)):
            self.machine[index] += number
            self.truth[index] += number

    @rule(ms=st.integers(1, 200))
    def wait(self, ms: int) -> None:
        """Time goes on, and what has happened is written."""
        self.now_ns += ms * MS
        self.told_ns = self.reset_ns

    @rule(late=st.booleans())
    def reset(self, late: bool) -> None:
        """The guest resets: its counters begin again. The event may be late."""
        self.in_doubt |= late or self.now_ns - self.read_at_ns <= self.offset_ns
        self.machine = [0, 0]
        self.read_before = [a + b for a, b in zip(self.read_before, self.read_now, strict=True)]
        self.read_now = [0, 0]
        self.reset_ns = self.now_ns - STARTED_NS - self.offset_ns
        if not late:
            self.told_ns = self.reset_ns
        self.now_ns += MS

    @rule()
    def read(self) -> None:
        """The agent asks."""
        self.now_ns += MS
        self.read_now = list(self.machine)
        self.read_at_ns = self.now_ns
        reading = BlockCounters(read_bytes=self.machine[0], write_bytes=self.machine[1])
        self.counters.take(reading, self.now_ns, self.told_ns)

    @rule()
    def restart(self) -> None:
        """The agent is killed."""
        self.counters = GuestCounters(Path(self.directory.name), START_TICKS)

    @precondition(lambda self: not self.in_doubt)
    @rule()
    def read_exactly(self) -> None:
        """Nothing that was ever read is lost, unless a reset was a hair's breadth from it."""
        self.read()
        expected = [a + b for a, b in zip(self.read_before, self.read_now, strict=True)]
        assert [self.counters.read_bytes, self.counters.write_bytes] == expected

    @invariant()
    def is_right(self) -> None:
        """Between what was read last and what the guest has done."""
        total = (self.counters.read_bytes, self.counters.write_bytes)
        assert total[0] <= self.truth[0]
        assert total[1] <= self.truth[1]
        assert total[0] >= self.last[0]
        assert total[1] >= self.last[1]
        self.last = total

    def teardown(self) -> None:
        """Remove the files."""
        self.counters.close()
        self.directory.cleanup()


TestGuest = GuestMachine.TestCase


def taken(run_dir: Path, *readings: tuple[int, int, int, int]) -> tuple[int, int]:
    """Totals after readings of (bytes read, bytes written, when, last reset)."""
    counters = GuestCounters(run_dir, START_TICKS)
    for read, write, at_ns, reset_ns in readings:
        counters.take(BlockCounters(read_bytes=read, write_bytes=write), at_ns, reset_ns)
    counters.close()
    return counters.read_bytes, counters.write_bytes


def test_a_reset_shows_in_counters_that_went_down(tmp_path: Path) -> None:
    """In one of them is enough; no event is needed."""
    assert taken(tmp_path, (10, 20, 1, -1), (10, 5, 2, -1)) == (20, 25)


def test_an_event_tells_of_a_reset_that_no_counter_shows(tmp_path: Path) -> None:
    """The new machine has overtaken the old one before it was read."""
    last_ns = STARTED_NS + 50 * MS
    later = (15, 30, last_ns + 90 * MS, 80 * MS)
    assert taken(tmp_path, (10, 20, last_ns, -1), later) == (25, 50)


def test_an_event_counts_once(tmp_path: Path) -> None:
    """It is in the history of every later reading, too."""
    last_ns = STARTED_NS + 50 * MS
    after = [(15 + n, 30 + n, last_ns + (90 + n) * MS, 80 * MS) for n in range(3)]
    assert taken(tmp_path, (10, 20, last_ns, -1), *after) == (27, 52)


def test_an_event_in_doubt_inflates_nothing(tmp_path: Path) -> None:
    """It may be older than the last reading, which then is of the new machine already."""
    last_ns = STARTED_NS + 50 * MS
    assert taken(tmp_path, (10, 20, last_ns, -1), (15, 30, last_ns + 9, 50 * MS)) == (15, 30)


def test_no_number_is_too_much(tmp_path: Path) -> None:
    """A VMM that lies makes no agent fall over."""
    most = 2**63 - 1
    readings = [(most, most, 1, -1), (0, 0, 2, -1)] * 3
    assert taken(tmp_path, *readings) == (most, most)


def test_damaged_totals_are_an_error(tmp_path: Path) -> None:
    """They are not taken for zero."""
    taken(tmp_path, (10, 20, 1, -1))
    (tmp_path / COUNTERS).write_bytes(b"x" * 44)
    with pytest.raises(DriverError, match="damaged"):
        GuestCounters(tmp_path, START_TICKS)
