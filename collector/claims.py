"""What hosts claim of themselves, until it is true of the enriched frames as well.

A claim that came with the raw message at place S is that all earlier frames of the host stand
before S. A raw message is acknowledged after its rows stand in `METRICS_ENRICHED` or in
`METRICS_REJECTED`. So once everything up to S is acknowledged, all that the claim speaks of stands
there, and whatever is published from then on stands behind it.
"""

from __future__ import annotations

from collections.abc import Mapping

from schemas.frames import HEADER_COMPLETE_MS

_MOST_PENDING = 32
_MOST_DIGITS = 18


def claimed_ms(headers: Mapping[str, str]) -> int | None:
    """What a frame's headers claim; None if that is nothing, or no time."""
    text = headers.get(HEADER_COMPLETE_MS, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS else None


class Claims:
    """The claims that came to one consumer. A subset of them is as good: it only tells less."""

    def __init__(self) -> None:
        self._pending: dict[str, list[tuple[int, int]]] = {}
        self._released: dict[str, int] = {}
        self._unsaid = False

    @property
    def waiting(self) -> bool:
        """Whether there is something to say, now or later."""
        return self._unsaid or bool(self._pending)

    def true_of(self, host_id: str) -> int | None:
        """What has been released of a host; None if nothing has."""
        return self._released.get(host_id)

    def note(self, host_id: str, complete_ms: int, raw_sequence: int) -> None:
        """Take a claim.

        Args:
            host_id: Whose frame it came with; it speaks of this host only.
            complete_ms: The claim.
            raw_sequence: The frame's place in its stream.
        """
        if complete_ms <= self._released.get(host_id, -1):
            return
        pending = self._pending.setdefault(host_id, [])
        if (raw_sequence, complete_ms) in pending:
            return
        pending.append((raw_sequence, complete_ms))
        if len(pending) > _MOST_PENDING:
            # One frame that cannot be dealt with holds all claims back. The last one stays.
            del pending[-2::-2]

    def release(self, ack_floor: int) -> dict[str, int]:
        """All that is true of the enriched frames by now, of all hosts; empty if nothing is new.

        Args:
            ack_floor: The consumer has acknowledged everything up to this place.
        """
        for host_id, pending in list(self._pending.items()):
            true = [complete_ms for sequence, complete_ms in pending if sequence <= ack_floor]
            if not true:
                continue
            self._released[host_id] = newest = max(true)
            self._unsaid = True
            left = [claim for claim in pending if claim[1] > newest]
            if left:
                self._pending[host_id] = left
            else:
                del self._pending[host_id]
        if not self._unsaid:
            return {}
        self._unsaid = False
        return dict(self._released)

    def say_again(self) -> None:
        """What was released last did not get through."""
        self._unsaid = True
