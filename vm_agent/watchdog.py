"""Ends VMMs that do not answer any more: their guests are lost, their resources are not.

Whether a VMM answers is seen by whoever reads its device counters; this only watches how long it
has not.
"""

from __future__ import annotations

import structlog

from runtime.clock import Clock
from schemas.units import NS_PER_S
from schemas.vms import ExitReason
from vm_agent.drivers.abc import DriverError
from vm_agent.fleet import Fleet, Live, Vm
from vm_agent.incarnations import Incarnations
from vm_agent.reporter import Spawn
from vm_agent.telemetry import Telemetry

_log = structlog.get_logger("decisec.watchdog")

_PERIOD_NS = NS_PER_S


class Watchdog:
    """Looks once a second.

    Args:
        fleet: The VMs.
        incarnations: Ends VMMs.
        limit_s: Silence after which a VMM counts as hung; 0 for never.
        clock: Monotonic time.
        telemetry: Counts what was ended.
        spawn: Starts a named task in the agent's group.
    """

    def __init__(
        self,
        fleet: Fleet,
        incarnations: Incarnations,
        limit_s: int,
        clock: Clock,
        telemetry: Telemetry,
        spawn: Spawn,
    ) -> None:
        self._fleet = fleet
        self._incarnations = incarnations
        self._limit_ns = limit_s * NS_PER_S
        self._clock = clock
        self._telemetry = telemetry
        self._spawn = spawn
        self._ending: set[Live] = set()

    async def run(self) -> None:
        """Watch until cancelled."""
        while self._limit_ns:
            await self._clock.sleep_until(self._clock.monotonic_ns() + _PERIOD_NS)
            self.look()

    def look(self) -> None:
        """Begin to end every VMM whose silence is too long."""
        now_ns = self._clock.monotonic_ns()
        for vm in self._fleet.vms:
            live = vm.live
            if live is None or live in self._ending or live.silent_since_ns is None:
                continue
            if now_ns - live.silent_since_ns >= self._limit_ns:
                self._ending.add(live)
                self._spawn(self._end(vm, live), f"watchdog-{vm.vm_id}")

    async def _end(self, vm: Vm, live: Live) -> None:
        try:
            # A command that keeps the VMM busy, a long snapshot, is no silence: wait for it.
            async with vm.lock:
                if vm.live is live and not live.exited.done() and not await _answers(live):
                    self._telemetry.vmms_hung.add(1)
                    _log.error("vmm.hung", vm_id=str(vm.vm_id), pid=live.vmm.pid)
                    await self._incarnations.end_by_force(vm, ExitReason.HUNG)
        except DriverError as error:
            _log.error("vmm.not_ended", vm_id=str(vm.vm_id), error=str(error))
        finally:
            self._ending.discard(live)
        self._incarnations.restart_when_due(vm)


async def _answers(live: Live) -> bool:
    try:
        await live.driver.inspect(live.vmm)
    except DriverError:
        return False
    return True
