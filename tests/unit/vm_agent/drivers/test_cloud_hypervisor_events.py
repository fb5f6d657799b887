"""Events are read once each, whatever a full disk or a guest does to their file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.cloud_hypervisor.events import render_event as event
from vm_agent.drivers.cloud_hypervisor_events import EVENTS, MAX_EVENT_BYTES, EventFile, History

REBOOTING = event("vm", "rebooting", 7)
PANIC = event("guest", "panic", 8, event="panic")


def history_of(run_dir: Path, content: bytes) -> History:
    """What a fresh reader makes of a file."""
    (run_dir / EVENTS).write_bytes(content)
    file = EventFile(run_dir)
    try:
        return file.read()
    finally:
        file.close()


def test_there_is_no_file_yet(tmp_path: Path) -> None:
    """The VMM has not made it: nothing has happened. Later it has."""
    file = EventFile(tmp_path)
    assert file.read() == History()
    (tmp_path / EVENTS).write_bytes(REBOOTING)
    assert file.read().reset_ns == 7
    file.close()
    file.close()


def test_a_life(tmp_path: Path) -> None:
    """Reset, panic, reset, shutdown: each leaves what still holds."""
    file = EventFile(tmp_path)
    with (tmp_path / EVENTS).open("ab", buffering=0) as events:
        for name in ("booting", "booted", "rebooting", "rebooted"):
            events.write(event("vm", name, 1_500_000_000))
        assert file.read() == History(reset_ns=1_500_000_000)
        events.write(PANIC)
        assert file.read() == History(reset_ns=1_500_000_000, panicked=True)
        events.write(event("vm", "rebooting", 2_000_000_001))
        assert file.read() == History(reset_ns=2_000_000_001)
        events.write(event("vm", "shutdown") + event("vm", "deleted"))
        assert file.read() == History(reset_ns=2_000_000_001, shut_down=True)
        events.write(event("vmm", "shutdown"))
        assert file.read() == History(reset_ns=2_000_000_001, shut_down=True, ended=True)
    file.close()


def test_a_machine_that_is_booted_again_is_not_shut_down(tmp_path: Path) -> None:
    """What counts is what was last."""
    assert not history_of(tmp_path, event("vm", "shutdown") + event("vm", "booting")).shut_down


@given(cut=st.integers(0, len(REBOOTING) - 1))
def test_an_event_without_its_end_waits_for_it(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    """Wherever the VMM has got to when it is read."""
    run_dir = tmp_path_factory.mktemp("run")
    file = EventFile(run_dir)
    with (run_dir / EVENTS).open("ab", buffering=0) as events:
        events.write(REBOOTING[:cut])
        assert file.read() == History()
        events.write(REBOOTING[cut:] + PANIC)
        assert file.read() == History(reset_ns=7, panicked=True)
    file.close()


@given(cut=st.integers(1, len(REBOOTING) - 1))
def test_a_torn_event_costs_no_other_one(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    """A full disk takes the rest of one; the next one follows right behind."""
    history = history_of(tmp_path_factory.mktemp("run"), PANIC + REBOOTING[:cut] + PANIC)
    assert history.panicked


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00" * 5000 + b"\n\n",
        b"\xff\n\n\n\n",
        b"[]\n\n",
        b'{"timestamp": 1}\n\n',
        b'{\n  "timestamp": {"secs": "now"}\n}\n\n',
        b'{\n  "timestamp": {"secs": 1, "nanos": 2}, "source": 3, "event": 4\n}\n\n',
        b"{" * 100_000 + b"\n\n",
        b'{\n  "timestamp"' * 10_000 + b"\n\n",
    ],
)
def test_garbage_is_skipped(tmp_path: Path, garbage: bytes) -> None:
    """The events around it count."""
    assert history_of(tmp_path, REBOOTING + garbage + PANIC) == History(reset_ns=7, panicked=True)


def test_an_event_that_never_ends_is_given_up(tmp_path: Path) -> None:
    """However long it is, it does not stay in memory, and what follows it is read."""
    file = EventFile(tmp_path)
    with (tmp_path / EVENTS).open("ab", buffering=0) as events:
        events.write(b"x" * (3 * MAX_EVENT_BYTES))
        assert file.read() == History()
        events.write(b"\n\n" + PANIC)
        assert file.read().panicked
    file.close()


def test_what_has_been_read_takes_no_space(tmp_path: Path) -> None:
    """A guest that resets its devices all day fills no disk, and nothing is read twice."""
    file = EventFile(tmp_path)
    reset = event("virtio-device", "reset", 1, id="disk")
    path = tmp_path / EVENTS
    with path.open("wb", buffering=0) as events:
        events.write(REBOOTING)
        for _ in range(40):
            events.write(reset * 1000)
            file.read()
        os.fsync(events.fileno())
        assert path.stat().st_size > 4_000_000
        assert path.stat().st_blocks * 512 < 1_000_000
        # The next agent begins behind the hole.
        other = EventFile(tmp_path)
        events.write(PANIC)
        assert other.read().panicked
        assert file.read() == History(reset_ns=7, panicked=True)
    other.close()
    file.close()
