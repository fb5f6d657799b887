"""Whether and when a VM whose VMM ended by itself is started again. Pure decisions."""

from __future__ import annotations

from datetime import datetime, timedelta

from schemas.vms import FAILURES, Counters, ExitReason, RestartPolicy, VmState
from vm_agent.store import Record

STEADY_MS = 60_000
"""An incarnation that ran so long was well: the next failure counts as the first one."""

_FIRST_S = 1
_LONGEST_S = 60
_RUNS = frozenset({VmState.RUNNING, VmState.PAUSED})


def after_death(
    record: Record, reason: ExitReason, final: Counters, now: datetime
) -> tuple[int, datetime | None]:
    """How often a VM has failed in a row by now, and when to start it again; None for never.

    A VM that was being stopped, or whose boot a command is waiting for, is the command's.
    """
    wanted = record.state in _RUNS or (record.state is VmState.BOOTING and record.current is None)
    if not wanted or reason not in FAILURES or record.spec.restart is not RestartPolicy.ON_FAILURE:
        return 0, None
    failures = 1 if final.uptime_ms >= STEADY_MS else record.failures + 1
    return failures, now + backoff(failures)


def backoff(failures: int) -> timedelta:
    """1 s after the first failure in a row, then twice as long each time, up to 60 s."""
    return timedelta(seconds=min(_LONGEST_S, _FIRST_S << min(failures - 1, 6)))
