"""What only a VMM knows, asked for in the background: its device counters.

VMMs are asked in turn, some of them right after each tick: so the next tick finds the loop idle,
and each reading is as old as the distance of turns says. One task per question, so that a VMM that
hangs delays nobody but itself.
"""

from __future__ import annotations

import asyncio
from collections import deque

import structlog

from runtime.clock import Clock
from schemas.units import NS_PER_S, TICK_MS
from vm_agent.consoles import Consoles
from vm_agent.drivers.abc import DriverError
from vm_agent.fleet import Live
from vm_agent.reporter import Spawn
from vm_agent.telemetry import Telemetry
from vm_agent.ticks import PERIOD_NS, refresh_period_ms

_log = structlog.get_logger("decisec.refreshing")

_ANSWER_S = 1.0
_FAILING_PERIOD_NS = NS_PER_S
_CONSOLE_PERIOD_NS = NS_PER_S


class Refreshing:
    """Keeps the device counters of all VMMs fresh.

    Args:
        clock: Monotonic time.
        consoles: Kept short meanwhile.
        telemetry: Counts VMMs that do not answer.
        spawn: Starts a named task in the agent's group.
    """

    def __init__(
        self, clock: Clock, consoles: Consoles, telemetry: Telemetry, spawn: Spawn
    ) -> None:
        self._clock = clock
        self._consoles = consoles
        self._telemetry = telemetry
        self._spawn = spawn
        self._turns: dict[Live, _Turn] = {}
        # In the order of their last turns.
        self._waiting: deque[_Turn] = deque()

    @property
    def period_ms(self) -> int:
        """How old the readings are by design: the distance of turns.

        When VMs go, the distance shrinks at once, and readings that were taken under the old one
        are still there for a while: then it is the time since the longest past turn.
        """
        period_ms = refresh_period_ms(len(self._turns))
        if not self._waiting:
            return period_ms
        since_ns = self._clock.monotonic_ns() - self._waiting[0].began_ns
        return max(period_ms, (since_ns + PERIOD_NS // 2) // PERIOD_NS * TICK_MS)

    def add(self, live: Live) -> None:
        """Ask this VMM at once, and then in turn."""
        turn = self._turns[live] = _Turn(live)
        self._waiting.append(turn)
        self._begin(turn)

    async def ended(self, live: Live) -> None:
        """Ask the VMM no more; it has ended. Returns once nobody asks it, within a second."""
        turn = self._turns.pop(live, None)
        if turn is not None:
            self._waiting.remove(turn)
            await turn.idle.wait()

    def go_on(self) -> None:
        """Ask those whose turn it is. To be called once a tick."""
        per_period = refresh_period_ms(len(self._turns)) // TICK_MS
        for _ in range(-(-len(self._turns) // per_period)):
            self._begin(self._waiting[0])
            self._waiting.rotate(-1)

    def _begin(self, turn: _Turn) -> None:
        now_ns = self._clock.monotonic_ns()
        if turn.idle.is_set() and not (
            turn.failing and now_ns < turn.asked_ns + _FAILING_PERIOD_NS
        ):
            turn.idle.clear()
            turn.asked_ns = now_ns
            vmm = turn.live.vmm
            self._spawn(self._take(turn), f"refresh-{vmm.vm_id}-{vmm.incarnation}")
        turn.began_ns = now_ns

    async def _take(self, turn: _Turn) -> None:
        try:
            turn.failing = not await self._ask(turn.live, failing=turn.failing)
            if turn.asked_ns >= turn.trim_ns:
                turn.trim_ns = turn.asked_ns + _CONSOLE_PERIOD_NS
                turn.live.driver.tidy(turn.live.vmm)
                await self._consoles.trim(turn.live.vmm.vm_id)
        finally:
            turn.idle.set()

    async def _ask(self, live: Live, *, failing: bool) -> bool:
        try:
            async with asyncio.timeout(_ANSWER_S):
                live.meter.device = await live.driver.counters(live.vmm)
        except (DriverError, TimeoutError) as error:
            self._telemetry.refreshes_failed.add(1)
            if live.silent_since_ns is None:
                live.silent_since_ns = self._clock.monotonic_ns()
            if not failing and not live.exited.done():
                _log.warning("vmm.silent", vm_id=str(live.vmm.vm_id), error=str(error))
            return False
        live.silent_since_ns = None
        return True


class _Turn:
    """One VMM in the line.

    Attributes:
        idle: Set while nobody asks it.
        began_ns: When its turn came last, whether it was asked or not.
        asked_ns: When it was asked last.
        failing: It has not answered then.
        trim_ns: When its console and its own log are to be looked at.
    """

    __slots__ = ("asked_ns", "began_ns", "failing", "idle", "live", "trim_ns")

    def __init__(self, live: Live) -> None:
        self.live = live
        self.idle = asyncio.Event()
        self.idle.set()
        self.began_ns = 0
        self.asked_ns = 0
        self.failing = False
        self.trim_ns = 0
