"""A host whose frames go out as an agent's do: sender and spool are real, the readings made up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

from runtime.bus import Bus
from schemas.frames import encode_frame
from schemas.ids import new_id
from tests.support.frames import Row, frame
from vm_agent.app import FrameOutlet
from vm_agent.completeness import Completeness
from vm_agent.sender import Sender
from vm_agent.spool import Outgoing, Spool
from vm_agent.telemetry import Telemetry


class MeteredHost:
    """One VM on one host.

    Attributes:
        away: NATS cannot be reached, as far as this host can tell: frames wait.
        empty: The VM is gone; frames go on without it.
        ticks: How many there were.
    """

    def __init__(
        self,
        bus: Bus,
        host: str,
        vm_id: UUID,
        folder: Path,
        *,
        base_ms: int,
        incarnation: int = 1,
    ) -> None:
        self.away = False
        self.empty = False
        self.ticks = 0
        self._host = host
        self._vm_id = vm_id
        self._incarnation = incarnation
        self._base_ms = base_ms
        self._run_id = new_id()
        self._outlet = FrameOutlet(bus, host)
        self.sender = Sender(
            self, Spool(folder, 10**9), Telemetry(), Completeness(lambda: 0), self._acked,
            spool_after=5, look_again_s=0.01,
        )  # fmt: skip

    @property
    def connected(self) -> bool:
        """`Outlet`."""
        return not self.away and self._outlet.connected

    async def publish(self, sent: Outgoing, complete_ms: int | None) -> None:
        """`Outlet`."""
        await self._outlet.publish(sent, complete_ms)

    async def tick(self, count: int) -> None:
        """So many ticks; each arrives before the next one, unless `away`."""
        for _ in range(count):
            counters = {"uptime_ms": 100 * self.ticks, "net_tx_bytes": 7 * self.ticks}
            row = Row(self._vm_id, counters, self._incarnation)
            made = frame(
                [] if self.empty else [row],
                run_id=self._run_id,
                seq=self.ticks,
                tick_ms=self._base_ms + 100 * self.ticks,
                host=self._host,
            )
            self.ticks += 1
            self.sender.offer(Outgoing(made.msg_id, encode_frame(made), made.tick_ms))
            if not self.away:
                await self.arrived()

    async def arrived(self) -> None:
        """Return once nothing waits any more."""
        async with asyncio.timeout(30):
            while self.sender.waiting:
                # A segment of the spool is gone only after its last frame was told of.
                await asyncio.sleep(0.01)

    async def _acked(self, _sent: Outgoing) -> None:
        """Nothing to do."""


@asynccontextmanager
async def metered_host(
    bus: Bus, host: str, vm_id: UUID, folder: Path, *, base_ms: int, incarnation: int = 1
) -> AsyncIterator[MeteredHost]:
    """A host that sends for the length of the block."""
    one = MeteredHost(bus, host, vm_id, folder, base_ms=base_ms, incarnation=incarnation)
    sending = asyncio.create_task(one.sender.run(), name=f"sender-{host}")
    try:
        yield one
    finally:
        sending.cancel()
        await asyncio.wait({sending})
