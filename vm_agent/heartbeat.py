"""The host's heartbeat: what it is, what it has left, every second."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Awaitable, Callable
from importlib.metadata import version

import structlog

from runtime.clock import Clock, utc_now
from runtime.errors import TransientError
from schemas.hosts import HostInfo
from schemas.ids import RunId
from schemas.units import NS_PER_S
from vm_agent.admission import Admission
from vm_agent.fleet import Fleet
from vm_agent.orders import Orders
from vm_agent.ports import Host
from vm_agent.settings import AgentSettings
from vm_agent.telemetry import Telemetry

_log = structlog.get_logger("decisec.heartbeat")

PERIOD_NS = NS_PER_S
_WRITE_S = 2.0


class Heartbeat:
    """Writes `HostInfo` on an absolute schedule.

    Args:
        settings: Pool and region.
        host: Driver and images.
        run_id: This run of the agent.
        driver: Version of the hypervisor, and why it was chosen.
        admission: What is left.
        fleet: How many VMs there are.
        orders: Whether the host drains, and why.
        write: Stores the heartbeat; TransientError while NATS is away.
        clock: Monotonic time.
        telemetry: Counts failures.
    """

    def __init__(
        self,
        settings: AgentSettings,
        host: Host,
        run_id: RunId,
        driver: tuple[str, str],
        admission: Admission,
        fleet: Fleet,
        orders: Orders,
        write: Callable[[HostInfo], Awaitable[object]],
        clock: Clock,
        telemetry: Telemetry,
    ) -> None:
        self._settings = settings
        self._host = host
        self._run_id = run_id
        self._driver_version, self._driver_reason = driver
        self._admission = admission
        self._fleet = fleet
        self._orders = orders
        self._started_at = utc_now()
        self._write = write
        self._clock = clock
        self._telemetry = telemetry

    async def run(self) -> None:
        """Beat until cancelled. A beat that cannot be written is skipped, not made up for."""
        due_ns = self._clock.monotonic_ns()
        failing = False
        while True:
            try:
                async with asyncio.timeout(_WRITE_S):
                    await self._write(self.beat())
            except (TransientError, TimeoutError) as error:
                self._telemetry.heartbeats_failed.add(1)
                if not failing:
                    _log.warning("heartbeat.failed", error=str(error))
                failing = True
            else:
                failing = False
            behind_ns = max(0, self._clock.monotonic_ns() - due_ns)
            due_ns += (behind_ns // PERIOD_NS + 1) * PERIOD_NS
            await self._clock.sleep_until(due_ns)

    def beat(self) -> HostInfo:
        """The host as it is now."""
        settings, host = self._settings, self._host
        return HostInfo(
            host_id=host.host_id,
            run_id=self._run_id,
            boot_id=host.processes.boot_id(),
            pool=settings.pool,
            region=settings.region,
            version=version("decisec"),
            driver=host.driver.name,
            driver_version=self._driver_version,
            driver_reason=self._driver_reason,
            simulated=host.driver.simulated,
            no_network=host.networks.unavailable or host.networks.missing,
            networks=host.networks.names,
            images=host.images.names(),
            draining=self._orders.draining(),
            drain_reason=self._orders.drain_reason,
            capacity=self._admission.capacity,
            free=self._admission.free,
            reserved=self._admission.reserved,
            vms=self._fleet.present,
            started_at=self._started_at,
            heartbeat_at=utc_now(),
            labels=settings.host_labels,
            arch=platform.machine().lower(),
            admitted=self._admission.lately(),
        )
