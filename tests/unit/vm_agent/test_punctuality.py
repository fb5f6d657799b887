"""The agent's own thread goes first; nothing that it starts does."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_TELL = """
import os, subprocess, sys, threading
from vm_agent.punctuality import run_first
reason = run_first()
if reason:
    sys.exit(reason)
policies = [os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK]
thread = threading.Thread(target=lambda: policies.append(os.sched_getscheduler(0)))
thread.start()
thread.join()
child = "import os; print(os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0))"
told = subprocess.run([sys.executable, "-S", "-c", child], capture_output=True, text=True)
policies.append(told.stdout.strip())
print(policies)
"""


def test_only_the_agents_own_thread_is_ahead_of_others() -> None:
    """Its threads and children are ordinary, without a niceness."""
    done = subprocess.run(
        [sys.executable, "-c", _TELL], capture_output=True, text=True, check=False, timeout=60
    )
    if "refuses" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([os.SCHED_RR, os.SCHED_OTHER, f"{os.SCHED_OTHER} 0"])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_who_may_not_go_first_is_told_why() -> None:
    """The agent then runs as it is."""
    tell = (
        "import os; os.setgid(65534); os.setuid(65534)\n"
        "from vm_agent.punctuality import run_first; print(run_first())\n"
        "print(os.sched_getscheduler(0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", "import vm_agent.punctuality\n" + tell],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "the kernel refuses it: Operation not permitted", str(os.SCHED_OTHER)
    ]  # fmt: skip
