"""Who tells what when: gateways report in rounds, so that all take the same from the same level.

A round begins when one of them has something to tell, at most ten times a second. Whoever hears
of a new round tells at once. What was told counts once all have told, or after `STALL_S`: whoever
is silent then is gone. No leader, no clock in common, no message per request.
"""

from __future__ import annotations

from gateway.rates import Buckets
from schemas.limits import Levels, SpendReport

TICK_S = 0.1
"""Between two rounds, at least."""
IDLE_S = 1.0
"""Between two rounds while nobody spends anything."""
STALL_S = 0.3
MAX_MEMBERS = 64
MAX_TOLD = 1000
"""Buckets in one report; what is beyond is told in the next round."""
_MAX_SHORT = 10_000


class Rounds:
    """One gateway's part in the exchange; pure but for the state, time passed in.

    Args:
        me: A name that no other gateway has, new at each start.
        buckets: What is shared.
    """

    def __init__(self, me: str, buckets: Buckets, now_s: float) -> None:
        self.me = me
        self._buckets = buckets
        self._round = 0
        self._began_s = now_s
        self._told: dict[str, int] = {me: 0}
        self._missed_s: dict[str, float] = {}
        self._unapplied: list[SpendReport] = []
        self._settled = -1

    @property
    def members(self) -> int:
        """How many gateways share the buckets, this one included."""
        return len(self._told)

    def tick(self, now_s: float) -> SpendReport | None:
        """What to tell now, if anything; called each `TICK_S`."""
        self._buckets.sweep(now_s)
        self._drop_silent(now_s)
        if self._open:
            return None
        if not self._buckets.dirty and now_s - self._began_s < IDLE_S:
            return None
        return self._begin(self._round + 1, now_s)

    def hear(self, report: SpendReport, now_s: float) -> SpendReport | None:
        """Take a report, one's own included; returns what to tell in answer, if anything."""
        mine = report.member == self.me
        if mine and report.round <= self._settled:
            return None  # settled while nobody could be told; it comes late
        self._unapplied.append(report)
        self._missed_s.pop(report.member, None)
        if report.leaving and not mine:
            self._told.pop(report.member, None)
        elif report.member in self._told or len(self._told) < MAX_MEMBERS:
            self._told[report.member] = max(report.round, self._told.get(report.member, 0))
        answer = None
        if report.round > self._round:
            answer = self._begin(report.round, now_s)
        if not self._open or len(self._unapplied) > 4 * MAX_MEMBERS:
            self._apply(now_s)
        return answer

    def alone(self, now_s: float) -> None:
        """NATS is away: go on by one's share of what there is."""
        self._apply(now_s)
        self._buckets.apply_alone(self.members, now_s)
        self._settled = self._round
        self._told[self.me] = self._round
        self._missed_s.clear()

    def leave(self) -> SpendReport:
        """The last report."""
        return SpendReport(
            member=self.me,
            round=self._round,
            spent=self._buckets.collect(MAX_TOLD),
            leaving=True,
        )

    def levels(self, now_s: float) -> Levels:
        """How everything stands, for a gateway that starts."""
        return Levels(
            round=self._round,
            members=tuple(self._told),
            short=self._buckets.short(now_s, _MAX_SHORT),
        )

    def join(self, levels: Levels, now_s: float) -> SpendReport:
        """Take over how everything stands; returns the first report."""
        self._buckets.lower(levels.short, now_s)
        for member in levels.members[: MAX_MEMBERS - 1]:
            self._told.setdefault(member, levels.round)
        return self._begin(max(levels.round, self._round) + 1, now_s)

    @property
    def _open(self) -> bool:
        return any(told < self._round for told in self._told.values())

    def _begin(self, number: int, now_s: float) -> SpendReport:
        self._round = number
        self._began_s = now_s
        for member, told in self._told.items():
            # Kept from an earlier round, so that rounds which others begin do not hide the silent.
            if told < number:
                self._missed_s.setdefault(member, now_s)
        return SpendReport(member=self.me, round=number, spent=self._buckets.collect(MAX_TOLD))

    def _drop_silent(self, now_s: float) -> None:
        silent = [name for name, since in self._missed_s.items() if now_s - since >= STALL_S]
        if not silent:
            return
        if self.me in silent:
            # Not even one's own word came back: cut off, and the others may be there all the same.
            self.alone(now_s)
            return
        for name in silent:
            del self._missed_s[name]
            self._told.pop(name, None)
        if not self._open:
            self._apply(now_s)

    def _apply(self, now_s: float) -> None:
        for report in self._unapplied:
            self._buckets.apply(report.spent, now_s, mine=report.member == self.me)
        self._unapplied.clear()
