"""What the kernel says of a process, for tests that judge what an agent said."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

ATTEMPTS = 3


def waited_ns(pid: int) -> int:
    """How long the busiest thread was ready to run without a CPU (sched-stats.rst), in ns."""
    stats = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return max((int(ran), int(waited)) for ran, waited, _ in stats)[1]


async def check_spinning(cpu_ratio: Callable[[], Awaitable[float]]) -> None:
    """A spinning guest uses 1.00 ± 0.02 CPU seconds per second, in one of a few measurements."""
    ratios: list[float] = []
    while not ratios or (len(ratios) < ATTEMPTS and not 0.98 <= ratios[-1] <= 1.02):
        ratios.append(await cpu_ratio())
    assert ratios[-1] == pytest.approx(1.0, abs=0.02)
