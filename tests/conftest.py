"""What all tests share: telemetry as in a service, and checks that no child or task is left."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from runtime.telemetry import configure_logging, configure_telemetry
from vm_agent import low_files

# Tests run side by side, on machines that do other things as well: an example takes its time, and
# pytest-timeout judges the whole.
settings.register_profile("decisec", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("decisec")


@pytest.fixture(scope="session", autouse=True)
def _telemetry() -> None:
    configure_logging("tests", "warning")
    configure_telemetry("tests")


@pytest.fixture(scope="session", autouse=True)
def _low_files_kept() -> None:
    """The engine of the store keeps hundreds of files open in the process that tests run in."""
    low_files.keep(16)


def _children() -> set[int]:
    path = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    return {int(pid) for pid in path.read_text().split()} if path.exists() else set()


@pytest.fixture(autouse=True)
def _no_child_left() -> Iterator[None]:
    """A test that leaves a child process behind has failed."""
    before = _children()
    yield
    left = _children() - before
    commands = {pid: _command(pid) for pid in left}
    assert not {p: c for p, c in commands.items() if c}, f"child processes left: {commands}"


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""


@pytest.fixture(autouse=True)
async def _no_task_left(_no_child_left: None) -> AsyncIterator[None]:
    """A test that leaves an asyncio task behind has failed: nobody would hear its error.

    Set up before all other fixtures of the test, so that their tasks have ended by the end.
    """
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not left, f"tasks left: {sorted(task.get_name() for task in left)}"
