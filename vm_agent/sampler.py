"""The 100 ms loop: every VM once per tick, on an absolute schedule.

A tick reads what the kernel holds, synchronously and for all VMs. What only a VMM knows is asked
for between the ticks, see `vm_agent.refreshing`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from uuid import UUID

import structlog

from runtime.clock import Clock
from schemas.frames import encode_frame
from schemas.units import NS_PER_S
from schemas.vms import VmState
from vm_agent.checkpoint import Checkpoint
from vm_agent.consoles import Consoles
from vm_agent.counters import to_values
from vm_agent.fleet import Live
from vm_agent.framing import FrameBuilder
from vm_agent.metering import GoneSources, Row, VmMeter
from vm_agent.refreshing import Refreshing
from vm_agent.reporter import Spawn
from vm_agent.spool import Outgoing
from vm_agent.store import Record, Settlement
from vm_agent.telemetry import Telemetry
from vm_agent.ticks import Tick, TickClock

_log = structlog.get_logger("decisec.sampler")

_REPORT_PERIOD_NS = 10 * NS_PER_S


class Sampler:
    """Samples VMMs and hands encoded frames on.

    Args:
        clock: Wall and monotonic time.
        boottime_ns: CLOCK_BOOTTIME, on which uptimes run.
        frames: Builds frames.
        checkpoint: Gets every tick before it is offered.
        consoles: Kept short while their VMMs run.
        offer: Takes an encoded frame; must not block.
        telemetry: Counts ticks.
        spawn: Starts a named task in the agent's group.
        at_once: Within its block all interfaces are read in one go.
    """

    def __init__(
        self,
        clock: Clock,
        boottime_ns: Callable[[], int],
        frames: FrameBuilder,
        checkpoint: Checkpoint,
        consoles: Consoles,
        offer: Callable[[Outgoing], None],
        telemetry: Telemetry,
        spawn: Spawn,
        at_once: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._clock = clock
        self._boottime_ns = boottime_ns
        self._frames = frames
        self._checkpoint = checkpoint
        self._offer = offer
        self._telemetry = telemetry
        self._at_once = at_once
        self._refreshing = Refreshing(clock, consoles, telemetry, spawn)
        # Several incarnations of one VM wait in line: a frame holds a VM at most once.
        self._meters: dict[UUID, deque[VmMeter]] = {}
        self._missed = 0
        self._report_ns = 0

    def add(self, live: Live) -> None:
        """Sample this VMM from the next tick on, and refresh its device counters."""
        self._enqueue(live.meter)
        self._refreshing.add(live)

    async def ended(self, live: Live) -> None:
        """Ask the VMM no more; it has ended. Returns once nobody asks it, within a second."""
        await self._refreshing.ended(live)

    def settle(self, record: Record, settlement: Settlement) -> None:
        """Send the final sample of an incarnation that an earlier run has ended."""
        meter = VmMeter(
            record.vm_id,
            settlement.incarnation,
            memory_mib=record.spec.memory_mib,
            started_ns=0,
            sources=GoneSources(),
            state=VmState.STOPPED,
            simulated=settlement.simulated,
            last=to_values(settlement.counters),
        )
        meter.finish(settlement.counters)
        self._enqueue(meter)

    @property
    def settling(self) -> bool:
        """Whether a final sample waits for its tick."""
        return any(meter.over for queue in self._meters.values() for meter in queue)

    async def run(self, stop: asyncio.Event) -> None:
        """Tick until `stop` is set and every final sample is in a frame."""
        ticks = TickClock(
            self._clock.wall_ns(), self._clock.monotonic_ns(), after_ms=self._checkpoint.tick_ms
        )
        while not stop.is_set() or self.settling:
            await self._clock.sleep_until(ticks.due_ns)
            began_ns = self._clock.monotonic_ns()
            tick = ticks.begin(self._clock.wall_ns(), began_ns)
            self.sample(tick)
            self._account(tick, began_ns)
            self._refreshing.go_on()

    def sample(self, tick: Tick) -> None:
        """Read all VMs, and hand the tick's frames on."""
        now_ns = self._boottime_ns()
        rows: list[tuple[UUID, Row]] = []
        over: list[UUID] = []
        held = 0
        with self._at_once():
            for vm_id, queue in self._meters.items():
                meter = queue[0]
                last = meter.ready_for_last
                rows.append((vm_id, meter.row(now_ns)))
                if meter.held:
                    held += meter.held
                    meter.held = 0
                if last:
                    over.append(vm_id)
        for vm_id in over:
            queue = self._meters[vm_id]
            queue.popleft()
            if not queue:
                del self._meters[vm_id]
        if held:
            self._telemetry.counters_held.add(held)
            _log.warning("counters.held", readings=held, tick_ms=tick.tick_ms)
        refresh_ms = self._refreshing.period_ms
        frames = self._frames.build(tick, self._clock.wall_ns(), rows, refresh_ms)
        outgoing = [Outgoing(frame.msg_id, encode_frame(frame), tick.tick_ms) for frame in frames]
        self._checkpoint.write([frame.payload for frame in outgoing])
        for frame in outgoing:
            self._offer(frame)

    def _enqueue(self, meter: VmMeter) -> None:
        self._meters.setdefault(meter.vm_id, deque()).append(meter)

    def _account(self, tick: Tick, began_ns: int) -> None:
        now_ns = self._clock.monotonic_ns()
        self._telemetry.ticks.add(1)
        self._telemetry.tick_lateness.record(tick.late_ns / NS_PER_S)
        self._telemetry.tick_duration.record((now_ns - began_ns) / NS_PER_S)
        if tick.missed:
            self._telemetry.ticks_missed.add(tick.missed)
            self._missed += tick.missed
        if self._missed and now_ns >= self._report_ns:
            _log.warning("ticks.missed", ticks=self._missed, tick_ms=tick.tick_ms)
            self._missed = 0
            self._report_ns = now_ns + _REPORT_PERIOD_NS
