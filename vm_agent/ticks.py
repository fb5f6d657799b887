"""Deciseconds: when the next sample is due, and what it is called.

Pure arithmetic on two clocks that are passed in. Ticks are due on the monotonic clock, every
100 ms. Their names are Unix milliseconds; the schedule is slewed so that names and wall clock
agree. A name never repeats and never goes back, whatever the wall clock does.
"""

from __future__ import annotations

from dataclasses import dataclass

from schemas.units import NS_PER_MS, NS_PER_S, TICK_MS

PERIOD_NS = TICK_MS * NS_PER_MS
MAX_SLEW_NS = 500_000
"""Half a per cent of a period: an offset of one second is gone after 200 s."""
STEP_NS = 10 * NS_PER_S
"""A wall clock this far ahead is followed at once: slewing would take an hour or more, and
meanwhile every sample would carry a time that is wrong."""


@dataclass(frozen=True, slots=True)
class Tick:
    """One tick that has begun.

    Attributes:
        tick_ms: Its name: Unix time in ms, a multiple of 100.
        late_ns: How long after its due time it began; less than a period.
        missed: Ticks that fell out just before it because the loop came too late.
        offset_ns: Wall clock less tick clock.
    """

    tick_ms: int
    late_ns: int
    missed: int
    offset_ns: int


class TickClock:
    """The schedule of one run.

    Args:
        wall_ns: The wall clock now, Unix ns.
        monotonic_ns: The monotonic clock at the same moment.
        after_ms: Newest tick of earlier runs; this run's names are greater.
    """

    def __init__(self, wall_ns: int, monotonic_ns: int, *, after_ms: int = -1) -> None:
        number = max(-(-wall_ns // PERIOD_NS), after_ms // TICK_MS + 1)
        self._tick_ms = number * TICK_MS
        # With a wall clock behind the earlier run's ticks, the names run ahead for a while.
        self._due_ns = monotonic_ns + min(number * PERIOD_NS - wall_ns, PERIOD_NS)

    @property
    def due_ns(self) -> int:
        """Monotonic time at which the next tick is due."""
        return self._due_ns

    def begin(self, wall_ns: int, monotonic_ns: int) -> Tick:
        """Begin the tick that is due, and plan the next one.

        Args:
            wall_ns: The wall clock now, Unix ns.
            monotonic_ns: The monotonic clock now, at or after `due_ns`.
        """
        missed, late_ns = divmod(monotonic_ns - self._due_ns, PERIOD_NS)
        tick_ms = self._tick_ms + missed * TICK_MS
        offset_ns = wall_ns - tick_ms * NS_PER_MS - late_ns
        step = offset_ns // PERIOD_NS if offset_ns > STEP_NS else 0
        slew_ns = max(-MAX_SLEW_NS, min(MAX_SLEW_NS, offset_ns - step * PERIOD_NS))
        self._tick_ms = tick_ms + (1 + step) * TICK_MS
        self._due_ns += (missed + 1) * PERIOD_NS - slew_ns
        return Tick(tick_ms, late_ns, missed, offset_ns)


def refresh_period_ms(vms: int) -> int:
    """How often a VMM is asked for its device counters, by the number of VMs on the host.

    Asking costs about 250 us of CPU over VMM and agent: 10 Hz up to 20 VMs, then stretched so
    that it stays near a twentieth of a core, and at least once a second.
    """
    return min(1000, max(TICK_MS, -(-vms * 5 // TICK_MS) * TICK_MS))
