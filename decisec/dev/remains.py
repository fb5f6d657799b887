"""What a former stack left on a state directory, and the proof that this one leaves nothing."""

from __future__ import annotations

import asyncio
import os
import signal

from decisec.dev.errors import StackError
from decisec.dev.leftovers import Process, marked_processes
from decisec.dev.programs import Programs
from decisec.dev.state import StateDir
from decisec.dev.supervisor import Report, Supervisor

_END_WITHIN_S = 5.0


async def reap(state: StateDir, supervisor: Supervisor, programs: Programs) -> None:
    """End all VMMs and remove all networks that the agent's records name.

    Raises:
        StackError: Something of it could not be ended.
    """
    if not state.agent.exists():
        return
    code, word = await supervisor.run(programs.reap(), within_s=30.0)
    if code:
        raise StackError(f"VMs of this stack could not be ended: {word}")


async def end_remains(
    state: StateDir, supervisor: Supervisor, programs: Programs, report: Report
) -> None:
    """End what a killed stack left on a directory that is ours now.

    Raises:
        StackError: Something of it does not end.
    """
    left = marked_processes(str(state.root))
    if left or state.endpoint_file.exists():
        report(f"a former stack was killed here; ending what it left ({len(left)} processes)")
    state.endpoint_file.unlink(missing_ok=True)
    await reap(state, supervisor, programs)
    left = await _end(marked_processes(str(state.root)), signal.SIGTERM, state)
    left = await _end(left, signal.SIGKILL, state)
    if left:
        raise StackError(f"processes of a former stack do not end: {_list(left)}")


async def prove_nothing_left(state: StateDir, report: Report) -> None:
    """Ask the kernel whether a process of this stack is still there; end it if so.

    Raises:
        StackError: There was one: stopping in order should have ended it.
    """
    left = marked_processes(str(state.root))
    if not left:
        report("nothing left running: the kernel shows no process of this stack")
        return
    await _end(left, signal.SIGKILL, state)
    raise StackError(f"these were still running after the stop and have been killed: {_list(left)}")


async def _end(left: list[Process], number: signal.Signals, state: StateDir) -> list[Process]:
    for process in left:
        try:
            os.kill(process.pid, number)
        except ProcessLookupError:
            continue
    try:
        async with asyncio.timeout(_END_WITHIN_S):
            while left := marked_processes(str(state.root)):
                await asyncio.sleep(0.05)
    except TimeoutError:
        return left
    return []


def _list(left: list[Process]) -> str:
    return ", ".join(f"{process.pid} ({process.command[:60]})" for process in left)
