"""Processes are told apart for good, billed to the end, and never left as zombies."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vm_agent.process import (
    VmmProcesses,
    cpu_ns,
    is_alive,
    start_ticks,
    wait_end,
)

SPIN = "import time\nwhile time.process_time() < 0.2: pass\nraise SystemExit(7)"


def spawn(processes: VmmProcesses, console: Path, *argv: str) -> tuple[int, int]:
    """Start a command; its pid and start time."""
    process = processes.spawn(argv, cwd=console.parent, console=console)
    return process.pid, process.start_ticks


async def test_an_exit_has_its_code_and_its_last_nanosecond(tmp_path: Path) -> None:
    """The clock of a zombie still stands, and the zombie is reaped."""
    processes = VmmProcesses()
    child = spawn(processes, tmp_path / "out", sys.executable, "-S", "-c", SPIN)
    async with asyncio.timeout(20):
        status = await processes.wait_exit(*child)
        again = await processes.wait_exit(*child)
    assert status == again
    assert status.exit_code == 7
    assert status.cpu_ns is not None
    assert status.cpu_ns >= 200_000_000
    assert start_ticks(child[0]) is None
    assert processes.exit_status(*child) == status
    processes.forget(*child)


async def test_several_may_wait_for_one_exit(tmp_path: Path) -> None:
    """All get the same answer; one that is cancelled disturbs nobody."""
    processes = VmmProcesses()
    child = spawn(processes, tmp_path / "out", "sleep", "60")
    async with asyncio.timeout(20):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await processes.wait_exit(*child)
        assert processes.exit_status(*child) is None
        async with asyncio.TaskGroup() as tasks:
            waiting = [tasks.create_task(processes.wait_exit(*child)) for _ in range(3)]
            processes.kill(*child)
    assert {task.result().exit_code for task in waiting} == {-signal.SIGKILL}
    assert len({task.result() for task in waiting}) == 1


async def test_an_adopted_process_has_no_exit_code(tmp_path: Path) -> None:
    """Another agent's child: its end is noticed all the same."""
    first, second = VmmProcesses(), VmmProcesses()
    child = spawn(first, tmp_path / "out", "sleep", "60")
    second.kill(*child)
    async with asyncio.timeout(20):
        adopted = await second.wait_exit(*child)
        assert adopted.exit_code is None
        assert (await first.wait_exit(*child)).exit_code == -signal.SIGKILL
        assert (await second.wait_exit(*child)).cpu_ns is None


async def test_a_reused_pid_is_another_process() -> None:
    """The start time decides; a foreign process is never killed."""
    pid, ticks = os.getpid(), start_ticks(os.getpid())
    assert ticks is not None
    assert is_alive(pid, ticks)
    assert not is_alive(pid, ticks + 1)
    VmmProcesses().kill(pid, ticks + 1)
    async with asyncio.timeout(1):
        await wait_end(pid, ticks + 1)
        assert (await VmmProcesses().wait_exit(pid, ticks + 1)).cpu_ns is None


async def test_a_process_survives_the_one_that_started_it(tmp_path: Path) -> None:
    """Kill -9 of an agent, and of its process group, leaves its VMMs running."""
    agent = (
        "import sys, pathlib\n"
        "from vm_agent.process import VmmProcesses\n"
        f"console = pathlib.Path({str(tmp_path / 'out')!r})\n"
        "p = VmmProcesses().spawn(['sleep', '60'], cwd=console.parent, console=console)\n"
        "print(p.pid, p.start_ticks, flush=True)\n"
        "sys.stdin.read()\n"
    )
    pid, ticks = await asyncio.to_thread(_kill_agent, agent)
    processes = VmmProcesses()
    assert is_alive(pid, ticks)
    processes.kill(pid, ticks)
    async with asyncio.timeout(20):
        await processes.wait_exit(pid, ticks)


def _kill_agent(agent: str) -> tuple[int, int]:
    """Run an agent until it has started its VMM, then SIGKILL its process group."""
    with subprocess.Popen(
        [sys.executable, "-c", agent],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        process_group=0,
    ) as parent:
        assert parent.stdout is not None
        first = parent.stdout.readline()
        os.killpg(parent.pid, signal.SIGKILL)
    pid, ticks = (int(word) for word in first.split())
    return pid, ticks


def test_a_command_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    """And starts nothing."""
    with pytest.raises(FileNotFoundError):
        VmmProcesses().spawn(["/nonexistent"], cwd=tmp_path, console=tmp_path / "out")


def test_the_process_clock_is_this_processes_clock() -> None:
    """The kernel's encoding of a process clock reads what Python's own clock reads."""
    before = time.process_time_ns()
    between = cpu_ns(os.getpid())
    assert before <= between <= time.process_time_ns()
    with pytest.raises(ProcessLookupError):
        cpu_ns(2**22 + 1)
