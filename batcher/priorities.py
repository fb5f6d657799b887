"""Merges of the embedded engine step back for everything else that wants the CPU.

Parts are merged whenever there are enough of them, by as many threads as the engine likes. On a
small machine that takes the CPU from the frames that arrive meanwhile, and makes them late for
seconds. A merge itself can wait; it gets what is left, and a tenth if nothing is.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_TASKS = Path("/proc/self/task")
_MERGES = "MergeMutate"
"""As ClickHouse names the threads of its pool for merges and mutations."""
_NICE = 10


def let_merges_wait() -> int:
    """Lower the priority of this process's merging threads; returns how many there are.

    The engine starts threads as it needs them, so this is to be done again now and then. Where
    threads have no priorities of their own (other systems than Linux), nothing happens.
    """
    found = 0
    with suppress(FileNotFoundError):
        for task in _TASKS.iterdir():
            # A thread may end at any moment.
            with suppress(FileNotFoundError, ProcessLookupError):
                if (task / "comm").read_text().strip() == _MERGES:
                    found += 1
                    os.setpriority(os.PRIO_PROCESS, int(task.name), _NICE)
    return found
