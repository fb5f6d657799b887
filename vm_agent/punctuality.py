"""What lets the agent's process begin its ticks in time on a host that is busy."""

from __future__ import annotations

import os

_PRIORITY = 1
"""The lowest real-time priority: ahead of all ordinary processes, behind the kernel's threads."""

YOUNG_OBJECTS = 10_000
GENERATIONS = 20
"""What the garbage collector waits for. A hundred VMs asked at once make thousands of objects that
reference counting frees."""


def run_first() -> str | None:
    """Make the calling thread a real-time one; the reason if that cannot be.

    A niceness would not do: it counts within a session or a control group only (sched(7), "The
    autogroup feature"). What this process starts, and its other threads, are ordinary again
    (SCHED_RESET_ON_FORK), so no VMM gets ahead of anything. The kernel keeps a twentieth of each
    CPU from real-time threads, so that an agent that spins stops nobody.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(_PRIORITY))
    except OSError as error:
        return f"the kernel refuses it: {error.strerror}"
    return None
