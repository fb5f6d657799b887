"""What figures are worth: the machine, and what it and single processes have used."""

from __future__ import annotations

import asyncio
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from tests.support.processes import waited_ns
from vm_agent.process import cpu_ns


def machine_facts() -> dict[str, Any]:
    """What the figures are worth on."""
    model = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpus": os.cpu_count(),
        "model": model[0] if model else platform.machine(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


class Usage(NamedTuple):
    """What a process has used so far."""

    at_ns: int
    cpu_ns: int
    waited_ns: int
    rss_bytes: int

    @classmethod
    def of(cls, pid: int) -> Usage:
        """Of a running process, now."""
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return cls(
            time.monotonic_ns(), cpu_ns(pid), waited_ns(pid), pages * os.sysconf("SC_PAGE_SIZE")
        )


class Machine(NamedTuple):
    """What the whole machine has used so far, in CPU seconds."""

    busy_s: float
    stolen_s: float

    @classmethod
    def now(cls) -> Machine:
        """By `/proc/stat`, see proc(5)."""
        first = Path("/proc/stat").read_text().partition("\n")[0].split()[1:]
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, first[:8])
        tick = os.sysconf("SC_CLK_TCK")
        return cls((user + nice + system + irq + softirq) / tick, steal / tick)


_FULL = 0.95


@dataclass(frozen=True, slots=True)
class Load:
    """What was used over a while.

    Attributes:
        seconds: How long it was.
        cpu: CPUs that each process used.
        others: CPUs that everything else on the machine used.
        rss_mib: Memory of each process: mean of each part in turn.
    """

    seconds: float
    cpu: dict[str, float]
    others: float
    rss_mib: dict[str, list[int]]

    @property
    def cpu_s(self) -> dict[str, float]:
        """CPU seconds that each process used."""
        return {name: round(used * self.seconds, 2) for name, used in self.cpu.items()}

    def saturated(self, cpus: int) -> str:
        """What has no more CPU to get, or the busiest process."""
        used = {**self.cpu, "others": self.others}
        busiest = max(used, key=lambda name: used[name])
        if sum(used.values()) > _FULL * cpus:
            return f"all CPUs, first of all by {busiest}"
        return f"{busiest} ({used[busiest]:.2f} of a CPU)"


class Watch:
    """Reads CPU and memory of processes once a second for the length of the block.

    Args:
        pids: Running ones, by name.
        part_s: Length of a part, for memory.
    """

    def __init__(self, pids: Mapping[str, int], *, part_s: float = 60.0) -> None:
        self._pids = pids
        self._part_s = part_s
        self._seen: list[tuple[Machine, dict[str, Usage]]] = []
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Watch:
        self._look()
        self._task = asyncio.create_task(self._run(), name="watch")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        self._look()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self._look()

    def _look(self) -> None:
        self._seen.append((Machine.now(), {n: Usage.of(pid) for n, pid in self._pids.items()}))

    def load(self) -> Load:
        """What was seen from the block's begin to its end."""
        (machine, first), (machine_after, last) = self._seen[0], self._seen[-1]
        any_name = next(iter(self._pids))
        seconds = (last[any_name].at_ns - first[any_name].at_ns) / 1e9
        cpu = {n: (last[n].cpu_ns - first[n].cpu_ns) / 1e9 / seconds for n in self._pids}
        busy = (machine_after.busy_s - machine.busy_s) / seconds
        return Load(
            seconds=round(seconds, 1),
            cpu={name: round(used, 2) for name, used in cpu.items()},
            others=round(max(0.0, busy - sum(cpu.values())), 2),
            rss_mib={name: self._memory(name) for name in self._pids},
        )

    def _memory(self, name: str) -> list[int]:
        begin_ns = self._seen[0][1][name].at_ns
        parts: dict[int, list[int]] = {}
        for _, used in self._seen:
            number = int((used[name].at_ns - begin_ns) / 1e9 / self._part_s)
            parts.setdefault(number, []).append(used[name].rss_bytes)
        return [sum(part) // len(part) // 2**20 for part in parts.values()]
