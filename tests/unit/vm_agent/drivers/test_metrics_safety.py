"""A VMM that is broken or hostile harms its own metrics only, never the agent or the host."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.metrics import KINDS, close_bench, line, open_bench
from vm_agent.drivers.metrics import CHANNELS, MetricsKind, open_metrics
from vm_agent.drivers.metrics_lines import METRICS_STATE, metrics_path


def test_a_hole_without_end_does_not_hold_the_agent(tmp_path: Path) -> None:
    """A hostile VMM can make its file as long as it likes: a terabyte takes many readings."""
    made = open_bench("file", tmp_path)
    assert made.writer.write(line(2))
    os.truncate(metrics_path(tmp_path), 1 << 40)
    started = time.monotonic()
    assert made.agent.read().disk_read_bytes == 2
    assert time.monotonic() - started < 5
    close_bench(made)


@pytest.mark.parametrize("steps", range(0, 60, 3))
def test_a_vmm_that_reads_its_own_pipe_harms_itself_only(tmp_path: Path, steps: int) -> None:
    """It can, since it has it open for reading; its lines are gone, the agent's work goes on."""
    made = open_bench("fifo", tmp_path)
    assert made.writer.write(line(1))
    assert made.agent.read().disk_read_bytes == 1
    assert made.writer.write(line(5))
    made.agent.read_and_die(steps)
    counted = made.agent.totals.disk_read_bytes
    assert counted in {1, 6}
    with metrics_path(tmp_path).open("rb", buffering=0) as thief:
        thief.read(1 << 20)
    assert made.agent.read().disk_read_bytes == counted
    assert made.writer.write(line(8))
    after = made.agent.read().disk_read_bytes
    assert after in {counted, counted + 8}  # it took the mark too, so this one may be torn
    assert made.writer.write(line(4))
    made.holds(after + 4)
    close_bench(made)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_made_where_something_is(tmp_path: Path, kind: MetricsKind) -> None:
    """A channel is new, never one that somebody has put there."""
    metrics_path(tmp_path).touch()
    with pytest.raises(FileExistsError):
        CHANNELS[kind].prepare(tmp_path)


def _link(path: Path) -> None:
    other = path.with_name("other")
    other.touch()
    path.symlink_to(other)


def _second_name(path: Path) -> None:
    other = path.with_name("other")
    other.touch()
    path.hardlink_to(other)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize("place", [_link, _second_name, _socket, Path.mkdir])
def test_what_a_hostile_vmm_puts_in_its_place_is_not_opened(
    tmp_path: Path, place: Callable[[Path], None]
) -> None:
    """A link to a file of the host, a second name of one, a socket, a folder."""
    place(metrics_path(tmp_path))
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(OSError, match=r"metrics\.json"):
        open_metrics(tmp_path, tmp_path / METRICS_STATE)
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert not (tmp_path / METRICS_STATE).exists()
