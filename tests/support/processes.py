"""What the kernel says of a process, for tests that judge what an agent said."""

from __future__ import annotations

from pathlib import Path


def waited_ns(pid: int) -> int:
    """How long the busiest thread was ready to run without a CPU (sched-stats.rst), in ns."""
    stats = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return max((int(ran), int(waited)) for ran, waited, _ in stats)[1]
