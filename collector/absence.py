"""How long hosts have stored no frame, as far as this collector has seen it.

A host's silence counts from when a look at the stream first found its last frame. So it is never
that of the collector: what was before it listened, while NATS was away or while the process stood
still does not count, and whatever interrupts the looks begins all counts anew. Frames that are
stored and not yet collected are no silence either, for it is the stream that is looked at.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass


@dataclass(slots=True)
class _Absence:
    sequence: int
    since_ns: int


class Absences:
    """The counts of hosts that seem to be away. Time is passed in, monotonic, in ns."""

    def __init__(self) -> None:
        self._hosts: dict[str, _Absence] = {}

    def look(self, host_id: str, sequence: int, *, asked_ns: int, answered_ns: int) -> int:
        """Note a look at the stream; for how long the same was found, in ns.

        Args:
            host_id: Whose last frame it was.
            sequence: Its place in the stream; 0 if there is none.
            asked_ns: When the stream was asked.
            answered_ns: When it had answered.
        """
        known = self._hosts.get(host_id)
        if known is None or known.sequence != sequence:
            self._hosts[host_id] = _Absence(sequence, answered_ns)
            return 0
        return max(0, asked_ns - known.since_ns)

    def keep(self, hosts: Container[str]) -> None:
        """Begin anew with all other hosts: they were heard, or are others' to look at."""
        for host_id in [host_id for host_id in self._hosts if host_id not in hosts]:
            del self._hosts[host_id]

    def heard(self, host_id: str) -> None:
        """Begin anew with a host that has shown itself otherwise."""
        self._hosts.pop(host_id, None)

    def interrupted(self) -> None:
        """Begin anew with all: for a while nobody could have been heard, or nobody listened."""
        self._hosts.clear()
