"""How far this host has come: before which tick all of its frames have arrived.

A claim goes with a frame, about once a second: every frame of this host with an earlier tick was
acknowledged before. Frames are sent in the order of their ticks, and a batch is begun when the one
before it is done; so the claim is the tick of a batch's first frame, if the spool is empty.

What nobody sends any more could still be on its way: the kernel goes on sending what a killed
process, or a connection that was given up, has left in its socket. So after a frame was given up,
or a former run has ended without putting its frames away, nothing is claimed for a while.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from schemas.units import NS_PER_S

STRAY_NS = 120 * NS_PER_S
"""Linux sends what is left in a socket that nobody owns for about 100 s (`tcp_orphan_retries`)."""
_EVERY_MS = 1000


class Completeness:
    """What may be claimed now.

    Args:
        monotonic_ns: The monotonic clock.
        stray_ns: How long a frame that was given up can still arrive.
    """

    def __init__(self, monotonic_ns: Callable[[], int], *, stray_ns: int = STRAY_NS) -> None:
        self._monotonic_ns = monotonic_ns
        self._stray_ns = stray_ns
        self._until_ns: int | None = None
        self._claimed_ms: int | None = None

    @property
    def doubtful(self) -> bool:
        """Whether a frame can still arrive that nobody waits for."""
        if self._until_ns is not None and self._monotonic_ns() >= self._until_ns:
            self._until_ns = None
        return self._until_ns is not None

    def doubt(self) -> None:
        """A frame that may be on its way was given up just now."""
        self._until_ns = self._monotonic_ns() + self._stray_ns

    def claim(self, tick_ms: int) -> int | None:
        """What to claim with the first frame that is not acknowledged; None if it is not time yet.

        Args:
            tick_ms: Its tick; negative if it is not known.
        """
        due = self._claimed_ms is None or tick_ms >= self._claimed_ms + _EVERY_MS
        return tick_ms if due and tick_ms >= 0 and not self.doubtful else None

    def claimed(self, complete_ms: int) -> None:
        """The frame with this claim has arrived."""
        self._claimed_ms = complete_ms


class FormerRun:
    """A file that a run leaves which has put away every frame that had not arrived.

    Only the death of a process is to be told by it: the sockets of a host that went down are gone,
    too. So nothing is synced.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def take_over(self) -> bool:
        """Whether the former run has left it; it is removed, and this run's to leave."""
        try:
            self._path.unlink()
        except FileNotFoundError:
            return False
        return True

    def settle(self) -> None:
        """Leave it."""
        self._path.touch()
