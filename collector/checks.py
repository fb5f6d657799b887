"""The checks of samples, as pure functions on whole columns.

A column here is the frame's own bytes seen as NumPy array, a row is one VM. No float is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from schemas.frames import COLUMNS, Frame
from schemas.units import NS_PER_MS
from schemas.vms import METERS

Ints: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]
Rows: TypeAlias = npt.NDArray[np.intp]

UPTIME: Final = METERS.index("uptime_ms")
CPU: Final = METERS.index("cpu_ns")

STALE_CPU_NS: Final = 20 * NS_PER_MS
"""How far the kernel's account of a running thread may lag: it is brought up to date at the
scheduler's tick, at most 10 ms apart; twice that."""

_LONG_NS: Final = 2**57
"""4.5 years: elapsed times are cut here so that times 64 + 32 CPUs they still fit 64 bits."""


class CpuLimit(NamedTuple):
    """What a VMM's process may use.

    A VMM runs more than vCPUs: Firecracker its API and device thread, QEMU a main loop and disk
    workers, and the kernel may copy on their behalf. Hence `overhead_threads` on top of the
    vCPUs, and `tolerance_ns` for what the readings of two clocks are apart.
    """

    overhead_threads: int
    tolerance_ns: int


class Before(NamedTuple):
    """Last accepted readings of the same rows; a row without one has `tick_ms` -1 and zeros.

    Attributes:
        tick_ms: Tick of the reading.
        same_run: Whether it came from the same run of the agent.
        counters: One row per meter, one column per VM.
    """

    tick_ms: Ints
    same_run: Bools
    counters: Ints


class Verdict(NamedTuple):
    """Which rows are bad and why, each row under one reason, and which bring news."""

    overflow: Bools
    decreased: Bools
    cpu: Bools
    newer: Bools


def counters_of(frame: Frame, rows: Rows | None) -> Ints:
    """The counters as signed numbers: one row per meter, one column per VM.

    Args:
        frame: Of checked shape.
        rows: Only these; None for all.
    """
    block = np.frombuffer(
        b"".join(
            (
                frame.uptime_ms,
                frame.cpu_ns,
                frame.mem_kib_ms,
                frame.disk_read_bytes,
                frame.disk_write_bytes,
                frame.net_rx_bytes,
                frame.net_tx_bytes,
            )
        ),
        "<i8",
    ).reshape(len(METERS), -1)
    return block if rows is None else block[:, rows]


def memory_of(frame: Frame, rows: Rows | None) -> Ints:
    """The gauge `mem_bytes` as signed numbers."""
    column = np.frombuffer(frame.mem_bytes, "<i8")
    return column if rows is None else column[rows]


def read_ns(frame: Frame) -> int:
    """When the readings were done, by the host's tick clock; never before the tick.

    Ticks are due times; a sampler that was held up reads later, and CPU went on meanwhile.
    """
    tick_ns = frame.tick_ms * NS_PER_MS
    return min(max(tick_ns, frame.sampled_at_ns - frame.clock_offset_ns), tick_ns + _LONG_NS)


def all_advance(
    *,
    counters: Ints,
    memory: Ints,
    before_ms: Ints,
    before: Ints,
    tick_ms: int,
    until_ns: int,
    cpus: Ints,
    limit: CpuLimit,
) -> bool:
    """Whether every row was seen before, is newer, and breaks no rule. The common case, cheap.

    Stricter than `judge` where rows were last seen at different ticks; False means: judge.
    """
    # Seen as unsigned, the -1 of an incarnation without a reading is greater than any tick.
    newest = int(np.maximum.reduce(before_ms.view(np.uint64)))
    if newest >= tick_ms:
        return False
    # Earlier readings are not negative, so this finds overflown counters too. Counting is the
    # quickest way to ask for `all` of a few rows.
    advanced = np.count_nonzero(counters >= before) == counters.size
    if not advanced or int(np.minimum.reduce(memory)) < 0:
        return False
    elapsed = min(until_ns - newest * NS_PER_MS, _LONG_NS) + STALE_CPU_NS
    plausible = counters[CPU] - before[CPU] <= cpus * elapsed + limit.tolerance_ns
    return bool(np.count_nonzero(plausible) == len(plausible))


def judge(
    *,
    counters: Ints,
    memory: Ints,
    before: Before,
    tick_ms: int,
    until_ns: int,
    cpus: Ints,
    limit: CpuLimit,
) -> Verdict:
    """Tell good rows from bad ones.

    Counters must not fall in tick order: a newer reading is at least the last one, an older one
    (late, replayed) of the same run at most. Ticks of two runs may disagree where an agent has
    lost what it knew of the earlier one.

    CPU time since the last reading is at most `cpus` times the time elapsed. That is the time
    from the last tick to this reading; between two runs, and after the zero baseline, the VM's own
    uptime counts if it says more: an agent that died before it could send the baseline sends it
    when it is back, however long the VM has run by then. An incarnation never seen is measured
    from its start, where all counters are zero.

    Args:
        counters: From `counters_of`.
        memory: From `memory_of`.
        before: Last accepted readings of the same rows.
        tick_ms: The frame's tick.
        until_ns: From `read_ns`.
        cpus: Per row: vCPUs and overhead threads.
        limit: What is allowed on top.
    """
    seen = before.tick_ms >= 0
    newer = before.tick_ms < tick_ms  # -1 as well
    older = before.tick_ms > tick_ms
    overflow = (counters < 0).any(axis=0) | (memory < 0)
    fell = (counters < before.counters).any(axis=0)
    rose = (counters > before.counters).any(axis=0)
    decreased = ((newer & fell) | (older & before.same_run & rose)) & ~overflow
    by_tick = np.minimum(until_ns - before.tick_ms * NS_PER_MS, _LONG_NS)
    by_uptime = (
        np.clip(counters[UPTIME] - before.counters[UPTIME], 0, _LONG_NS // NS_PER_MS) * NS_PER_MS
    )
    by_tick_alone = before.same_run & (before.counters[UPTIME] > 0)
    elapsed = np.where(
        seen, np.where(by_tick_alone, by_tick, np.maximum(by_tick, by_uptime)), by_uptime
    )
    allowed = cpus * (elapsed + STALE_CPU_NS) + limit.tolerance_ns
    used = counters[CPU] - before.counters[CPU]
    cpu = newer & (used > allowed) & ~overflow & ~decreased
    return Verdict(overflow, decreased, cpu, newer & ~overflow & ~decreased & ~cpu)


def take(column: bytes, dtype: str, rows: Rows) -> bytes:
    """Some rows of one column."""
    return np.frombuffer(column, dtype)[rows].tobytes()


def select(frame: Frame, rows: Sequence[int] | Rows) -> Frame:
    """The same frame with only these rows."""
    chosen = np.asarray(rows, np.intp)
    return msgspec.structs.replace(
        frame, **{c.name: take(getattr(frame, c.name), c.dtype, chosen) for c in COLUMNS}
    )
