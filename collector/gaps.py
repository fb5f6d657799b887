"""Holes in the frame numbers of each agent run.

Within a run `seq` has no holes, so a number that is skipped is a frame that is lost or late.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID, uuid5

from schemas.events import GapClosed, GapOpened

MAX_RUNS_PER_HOST = 8
MAX_GAPS_PER_RUN = 256
MAX_PIECES_PER_GAP = 256


@dataclass(slots=True)
class _Gap:
    """Frames `first..last` were skipped; `missing` are the stretches still not there."""

    first: int
    last: int
    missing: list[tuple[int, int]]

    @property
    def frames(self) -> int:
        return sum(last - first + 1 for first, last in self.missing)

    def fill(self, seq: int) -> bool:
        """Take one frame out of what is missing; whether it was missing."""
        for place, (first, last) in enumerate(self.missing):
            if first <= seq <= last:
                left = [(first, seq - 1)] if first < seq else []
                right = [(seq + 1, last)] if seq < last else []
                self.missing[place : place + 1] = left + right
                return True
        return False


@dataclass(slots=True)
class _Run:
    next_seq: int
    gaps: list[_Gap] = field(default_factory=list)


class Gaps:
    """Follows the frame numbers of all hosts. Bounded per host; see the constants.

    A run is followed from the first of its frames that comes, whatever its number: what came
    before a restart of the collector was another process's to see. A frame that the server
    delivers again never opens a gap, because its neighbours may have been acknowledged before.

    Attributes:
        missing: Frames that were skipped and have not come since.
        opened: Gaps opened so far.
    """

    def __init__(self) -> None:
        self.missing = 0
        self.opened = 0
        self._hosts: dict[str, OrderedDict[UUID, _Run]] = {}

    def observe(
        self, host_id: str, run_id: UUID, seq: int, *, redelivered: bool, at: datetime
    ) -> list[GapOpened | GapClosed]:
        """Note that a frame has come; the events that this brings, with ids of their own content.

        Args:
            host_id: Its host.
            run_id: Its agent run.
            seq: Its number.
            redelivered: The server has delivered it before.
            at: Now.
        """
        runs = self._hosts.setdefault(host_id, OrderedDict())
        run = runs.get(run_id)
        if run is None:
            if not redelivered:
                runs[run_id] = _Run(seq + 1)
                if len(runs) > MAX_RUNS_PER_HOST:
                    runs.popitem(last=False)
            return []
        runs.move_to_end(run_id)
        if seq == run.next_seq:
            run.next_seq += 1
            return []
        if seq < run.next_seq:
            return self._fill(host_id, run_id, run, seq, at)
        if redelivered:
            return []
        gap = _Gap(run.next_seq, seq - 1, [(run.next_seq, seq - 1)])
        run.next_seq = seq + 1
        run.gaps.append(gap)
        if len(run.gaps) > MAX_GAPS_PER_RUN:
            del run.gaps[0]
        self.missing += gap.frames
        self.opened += 1
        return [
            GapOpened(
                event_id=_event_id(run_id, "gap_opened", host_id, gap),
                at=at,
                host_id=host_id,
                run_id=run_id,
                seq_first=gap.first,
                seq_last=gap.last,
            )
        ]

    def forget(self, host_id: str) -> None:
        """Drop what is known of a host; its missing frames stay counted."""
        self._hosts.pop(host_id, None)

    def _fill(
        self, host_id: str, run_id: UUID, run: _Run, seq: int, at: datetime
    ) -> list[GapOpened | GapClosed]:
        for place, gap in enumerate(run.gaps):
            if not gap.first <= seq <= gap.last:
                continue
            if not gap.fill(seq):
                return []
            self.missing -= 1
            if gap.missing:
                if len(gap.missing) > MAX_PIECES_PER_GAP:
                    del run.gaps[place]
                return []
            del run.gaps[place]
            return [
                GapClosed(
                    event_id=_event_id(run_id, "gap_closed", host_id, gap),
                    at=at,
                    host_id=host_id,
                    run_id=run_id,
                    seq_first=gap.first,
                    seq_last=gap.last,
                )
            ]
        return []


def _event_id(run_id: UUID, kind: str, host_id: str, gap: _Gap) -> UUID:
    """The same for the same fact, so that telling it twice stores it once."""
    return uuid5(run_id, f"{kind}:{host_id}:{gap.first}-{gap.last}")
