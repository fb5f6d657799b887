"""A storm from its first create to its last bill."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from rich.progress import Progress

from decisec.dev.race import race
from runtime.bus import Bus
from runtime.errors import DecisecError
from schemas.ids import new_id
from tests.load.flood.commands.doors import Door, RefusedError, UnansweredError
from tests.load.flood.commands.endings import Endings
from tests.load.flood.commands.life import Life, Living
from tests.load.flood.commands.plan import StormPlan
from tests.load.flood.commands.tally import Tally
from tests.load.flood.commands.verdict import Audit, Bills, Left, Leftovers, clear, next_event

_TELL_EVERY_S = 0.25


@dataclass(slots=True, kw_only=True)
class Ways:
    """How a storm reaches a deployment.

    Attributes:
        doors: Lives take them in turn.
        endings: Tells when commands have ended.
        leftovers: Finds what is left.
        bus: Where agents tell the last counters of VMs; None if only the API does.
    """

    doors: Sequence[Door]
    endings: Endings
    leftovers: Leftovers
    bus: Bus | None = None


@dataclass(slots=True, kw_only=True)
class Signals:
    """What the user asks for.

    Attributes:
        stop: No new lives; those that go on go straight to their deletion.
        hurry: Leave everything as it is.
    """

    stop: asyncio.Event = field(default_factory=asyncio.Event)
    hurry: asyncio.Event = field(default_factory=asyncio.Event)


class Storm:
    """One storm.

    Args:
        plan: What happens.
        ways: Where.
        progress: Told of all that takes time.
        signals: Looked at all the time.
        settled_within_s: If no further bill is settled for so long, what is missing is lost.
    """

    def __init__(
        self,
        plan: StormPlan,
        ways: Ways,
        progress: Progress,
        signals: Signals | None = None,
        *,
        settled_within_s: float = 30.0,
    ) -> None:
        self.storm_id = new_id().hex[-8:]
        self.tally = Tally()
        self.lives: list[Life] = []
        self._plan = plan
        self._ways = ways
        self._progress = progress
        self._signals = signals or Signals()
        self._settled_within_s = settled_within_s

    async def run(self) -> dict[str, Any] | None:
        """All of it; the report, ready for JSON. None if it was hurried, and VMs may be left.

        Raises:
            TransientError: The bus is away at the beginning.
        """
        return await race(self._run(), self._signals.hurry.wait(), name="storm")

    async def _run(self) -> dict[str, Any]:
        began, began_s = datetime.now(UTC), time.monotonic()
        bus = self._ways.bus
        audit = Audit(
            bus, began, await next_event(bus) if bus else 0, settled_within_s=self._settled_within_s
        )
        await self._live(began_s)
        lived_s = time.monotonic() - began_s
        interrupted = self._signals.stop.is_set()
        left, bills = Left(), Bills()
        try:
            left = await clear(self._ways.leftovers, self.storm_id, self.lives, self.tally)
            if not interrupted:
                bills = await audit.judge(self.lives, self.tally)
        except (DecisecError, RefusedError, UnansweredError) as error:
            self.tally.note(f"what became of the VMs is not known: {error}")
        return self._report(lived_s, left, bills, interrupted=interrupted)

    async def _live(self, began_s: float) -> None:
        plan, stop = self._plan, self._signals.stop
        living = Living(
            self.storm_id, plan, self._ways.endings, self.tally, stop, self._ways.bus is None
        )
        self.lives = [
            Life(n, self._ways.doors[n % len(self._ways.doors)], began_s + plan.due_s(n), killed)
            for n, killed in enumerate(plan.kills())
        ]
        room = asyncio.Semaphore(plan.at_once)

        async def lead(life: Life) -> None:
            try:
                await living.lead(life)
            finally:
                room.release()

        teller = asyncio.create_task(self._tell(), name="tell")
        try:
            async with asyncio.TaskGroup() as group:
                for life in self.lives:
                    if await _stopped(stop, life.due_s):
                        break
                    await room.acquire()
                    group.create_task(lead(life), name=f"life-{life.number}")
        finally:
            teller.cancel()
            await asyncio.wait({teller})
        self.lives = self.lives[: self.tally.begun]

    async def _tell(self) -> None:
        plan, progress = self._plan, self._progress
        begun = progress.add_task("lives begun", total=plan.lives)
        over = progress.add_task("lives over", total=plan.lives)
        try:
            while True:
                self._show(begun, over)
                await asyncio.sleep(_TELL_EVERY_S)
        finally:
            self._show(begun, over)

    def _show(self, begun: Any, over: Any) -> None:
        tally, progress = self.tally, self._progress
        refused = tally.total("refused")
        progress.update(
            begun,
            completed=tally.begun,
            note=f"{tally.begun - tally.over} live, at most {tally.behind_s:.1f} s behind",
        )
        progress.update(
            over,
            completed=tally.over,
            note=f"{tally.whole} whole, {refused} refused, {tally.total('failed')} failed, "
            f"{tally.total('lost')} lost",
        )

    def _report(
        self, lived_s: float, left: Left, bills: Bills, *, interrupted: bool
    ) -> dict[str, Any]:
        tally = self.tally
        if not tally.whole and not interrupted:
            tally.note("no life was whole: nothing is shown by this storm")
        return {
            "plan": asdict(self._plan),
            "storm_id": self.storm_id,
            "customers": sorted({door.customer for door in self._ways.doors}),
            "ends_told_by": self._ways.endings.how,
            "seconds": round(lived_s, 2),
            "lives": {
                "begun": tally.begun,
                "whole": tally.whole,
                "a_second": round(tally.over / lived_s, 2),
                "behind_ms": round(tally.behind_s * 1000),
            },
            "commands": {verb: commands.report() for verb, commands in tally.commands.items()},
            "lost": tally.total("lost"),
            "unanswered": tally.total("unanswered"),
            "vanished": tally.vanished,
            **asdict(left),
            "bills": asdict(bills),
            "interrupted": interrupted,
            "problems": tally.problems,
            "conserved": not tally.problems and not interrupted,
        }


async def _stopped(stop: asyncio.Event, due_s: float) -> bool:
    """Wait for a moment; whether it was said to stop by then."""
    try:
        async with asyncio.timeout(max(0.0, due_s - time.monotonic())):
            await stop.wait()
    except TimeoutError:
        return stop.is_set()
    return True
