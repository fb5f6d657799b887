"""The 100 ms loop: every VM once per tick, on an absolute schedule.

A tick reads what the kernel holds, synchronously and for all VMs. What only the VMM knows is
asked for in the background, one task per VM, so that a VMM that hangs delays nothing but its
own device counters.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from uuid import UUID

import structlog

from runtime.clock import Clock
from schemas.frames import encode_frame
from schemas.units import NS_PER_MS, NS_PER_S
from schemas.vms import VmState
from vm_agent.checkpoint import Checkpoint
from vm_agent.consoles import Consoles
from vm_agent.counters import to_values
from vm_agent.drivers.abc import DriverError
from vm_agent.fleet import Live
from vm_agent.framing import FrameBuilder
from vm_agent.metering import GoneSources, Row, VmMeter
from vm_agent.reporter import Spawn
from vm_agent.spool import Outgoing
from vm_agent.store import Record, Settlement
from vm_agent.telemetry import Telemetry
from vm_agent.ticks import Tick, TickClock, refresh_period_ms

_log = structlog.get_logger("decisec.sampler")

_REFRESH_S = 1.0
_CONSOLE_PERIOD_NS = NS_PER_S
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
    ) -> None:
        self._clock = clock
        self._boottime_ns = boottime_ns
        self._frames = frames
        self._checkpoint = checkpoint
        self._consoles = consoles
        self._offer = offer
        self._telemetry = telemetry
        self._spawn = spawn
        # Several incarnations of one VM wait in line: a frame holds a VM at most once.
        self._meters: dict[UUID, deque[VmMeter]] = {}
        self._refreshes: dict[VmMeter, _Refresh] = {}
        self._added = 0
        self._missed = 0
        self._report_ns = 0

    def add(self, live: Live) -> None:
        """Sample this VMM from the next tick on, and refresh its device counters."""
        self._enqueue(live.meter)
        self._added += 1
        # Golden section: VMs that start together are not asked together for ever.
        refresh = self._refreshes[live.meter] = _Refresh(self._added * 618 % 1000 or 1000)
        name = f"refresh-{live.vmm.vm_id}-{live.vmm.incarnation}"
        self._spawn(self._refresh(live, refresh), name)

    async def ended(self, live: Live) -> None:
        """Ask the VMM no more; it has ended. Returns once nobody asks it, within a second."""
        refresh = self._refreshes.pop(live.meter, None)
        if refresh is not None:
            refresh.stop.set()
            await refresh.stopped.wait()

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

    def sample(self, tick: Tick) -> None:
        """Read all VMs, and hand the tick's frames on."""
        now_ns = self._boottime_ns()
        rows: list[tuple[UUID, Row]] = []
        over: list[UUID] = []
        held = 0
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
        frames = self._frames.build(tick, self._clock.wall_ns(), rows)
        outgoing = [Outgoing(frame.msg_id, encode_frame(frame)) for frame in frames]
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

    async def _refresh(self, live: Live, refresh: _Refresh) -> None:
        """Ask one VMM for its device counters, again and again, until it has ended."""
        failing = False
        try:
            while not refresh.stop.is_set():
                began_ns = self._clock.monotonic_ns()
                failing = not await self._ask(live, failing)
                if began_ns >= refresh.trim_ns:
                    refresh.trim_ns = began_ns + _CONSOLE_PERIOD_NS
                    await self._consoles.trim(live.vmm.vm_id)
                period_ms = 1000 if failing else refresh_period_ms(len(self._refreshes))
                due_ns = began_ns + period_ms * NS_PER_MS * refresh.take_phase() // 1000
                await _event_or(refresh.stop, due_ns - self._clock.monotonic_ns())
        finally:
            refresh.stopped.set()

    async def _ask(self, live: Live, failing: bool) -> bool:
        try:
            async with asyncio.timeout(_REFRESH_S):
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


class _Refresh:
    """One VM's background reading: told to stop, and says when it has.

    Args:
        phase_permille: Part of a period that the second reading comes after the first.
    """

    def __init__(self, phase_permille: int) -> None:
        self.stop = asyncio.Event()
        self.stopped = asyncio.Event()
        self.trim_ns = 0
        self._phase_permille = phase_permille

    def take_phase(self) -> int:
        """Permille of a period to the next reading: the phase once, then whole ones."""
        phase, self._phase_permille = self._phase_permille, 1000
        return phase


async def _event_or(event: asyncio.Event, wait_ns: int) -> None:
    """Wait for the event, at most so long."""
    try:
        async with asyncio.timeout(max(0, wait_ns) / NS_PER_S):
            await event.wait()
    except TimeoutError:
        return
