"""How a VMM passes away, whatever its kind: asked of the kernel, marked in the run directory."""

from __future__ import annotations

import asyncio
from pathlib import Path

from vm_agent.drivers.abc import DriverError, Vmm
from vm_agent.process import VmmProcesses, is_alive, wait_end

EXIT_GRACE_S = 0.2
"""A VMM that closed its socket is given so long to be gone, before it counts as hanging."""

KILLED_MARK = "killed"
"""File in the run directory: the agent ended this VMM. Outlives the agent."""

_DEATH_S = 2.0


def alive(vmm: Vmm) -> bool:
    """Whether the VMM's process runs; a zombie does not."""
    return is_alive(vmm.pid, vmm.start_ticks)


async def ends_soon(vmm: Vmm) -> bool:
    """Whether a VMM that stopped answering is just about to exit; waits `EXIT_GRACE_S` at most."""
    try:
        async with asyncio.timeout(EXIT_GRACE_S):
            await wait_end(vmm.pid, vmm.start_ticks)
    except TimeoutError:
        return False
    return True


async def end_process(processes: VmmProcesses, vmm: Vmm) -> None:
    """SIGKILL, and wait until the process is a zombie or gone.

    Raises:
        DriverError: It hangs in the kernel.
    """
    processes.kill(vmm.pid, vmm.start_ticks)
    try:
        async with asyncio.timeout(_DEATH_S):
            await wait_end(vmm.pid, vmm.start_ticks)
    except TimeoutError as error:
        raise DriverError(f"process {vmm.pid} does not die of SIGKILL") from error


def mark_killed(run_dir: Path) -> None:
    """Remember that it was us."""
    if run_dir.is_dir():
        (run_dir / KILLED_MARK).touch()


def was_killed(run_dir: Path) -> bool:
    """Whether it was us."""
    return (run_dir / KILLED_MARK).exists()
