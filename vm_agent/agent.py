"""The agent put together: what starts, in which order, and how it ends.

Everything outside comes in as a port, so the same agent runs on a real host and in a test. It
ends in this order: take no more commands, finish those at work, put their final samples in a
frame, send the frames, leave the rest to the next run. The VMs run on.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import structlog

from runtime.clock import Clock
from schemas.frames import SampleFlag, decode_frame
from schemas.hosts import HostInfo, Resources
from schemas.ids import new_id
from schemas.units import MIB
from vm_agent.admission import Admission
from vm_agent.adoption import Adoption
from vm_agent.agreements import Agreements
from vm_agent.checkpoint import Checkpoint
from vm_agent.completeness import Completeness, FormerRun
from vm_agent.connecting import Connecting, Watch
from vm_agent.consoles import Consoles
from vm_agent.fleet import Fleet
from vm_agent.forgetting import Forgetting
from vm_agent.framing import FrameBuilder
from vm_agent.heartbeat import Heartbeat
from vm_agent.incarnations import Incarnations
from vm_agent.intake import Inbox, Intake
from vm_agent.lifecycle import Lifecycle
from vm_agent.network_checks import NetworkChecks
from vm_agent.orders import Announce, OrderBook, Orders
from vm_agent.peering import Peering, PeerWords
from vm_agent.places import Places
from vm_agent.ports import Host
from vm_agent.questions import Answers, Questions
from vm_agent.refusals import Refusals, Write
from vm_agent.reporter import Desk
from vm_agent.sampler import Sampler
from vm_agent.sender import Outlet, Sender
from vm_agent.settings import AgentSettings
from vm_agent.snapshot_store import SnapshotStore
from vm_agent.snapshotting import Snapshotting
from vm_agent.spool import Outgoing, Spool
from vm_agent.store import RecordStore
from vm_agent.telemetry import Telemetry
from vm_agent.watchdog import Watchdog
from vm_agent.wishes import Offer

_log = structlog.get_logger("decisec.agent")


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What is outside of the agent.

    Attributes:
        driver: Version of the hypervisor, and why it was chosen.
        write_heartbeat: Stores a heartbeat.
        orders: What the operator has ordered for this host.
        peers: What customers say of each other.
        announce: Stores an event of the host.
        audit: Stores an entry of what was refused.
        questions: What is asked about this host's VMs.
        ready: Called once commands are taken.
    """

    host: Host
    capacity: Resources
    driver: tuple[str, str]
    desk: Desk
    inbox: Inbox
    outlet: Outlet
    write_heartbeat: Callable[[HostInfo], Awaitable[object]]
    orders: OrderBook
    peers: PeerWords
    announce: Announce
    audit: Write
    questions: Questions
    clock: Clock
    ready: Callable[[], None]


class _Tasks:
    """Named tasks of one group that can be ended together."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self._running: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = self._group.create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def cancel(self) -> None:
        # A task that ends may start another one, so until none is left.
        while self._running:
            tasks = list(self._running)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


class Agent:
    """One run of the agent.

    Args:
        settings: The operator's.
        world: What is outside.
        telemetry: Metrics.
    """

    def __init__(self, settings: AgentSettings, world: World, telemetry: Telemetry) -> None:
        self._settings = settings
        self._world = world
        self._telemetry = telemetry
        self.run_id = new_id()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then end in order within the grace period."""
        data_dir = self._world.host.data_dir
        checkpoint = await asyncio.to_thread(Checkpoint, data_dir / "checkpoint")
        try:
            async with asyncio.TaskGroup() as group:
                await self._work(_Tasks(group), checkpoint, stop)
        finally:
            checkpoint.close()

    async def _work(self, tasks: _Tasks, checkpoint: Checkpoint, stop: asyncio.Event) -> None:
        world, settings, telemetry = self._world, self._settings, self._telemetry
        host = world.host
        store = await asyncio.to_thread(RecordStore, host.data_dir / "vms")
        spool = await asyncio.to_thread(
            Spool,
            host.data_dir / "spool",
            settings.spool_max_mib * MIB,
            sync=settings.spool_fsync == "always",
        )
        fleet = Fleet(host.host_id, store, world.desk, tasks.spawn)
        completeness = Completeness(world.clock.monotonic_ns)
        former = FormerRun(host.data_dir / "frames-settled")
        if not await asyncio.to_thread(former.take_over) and checkpoint.tick_ms >= 0:
            completeness.doubt()
        sender = Sender(world.outlet, spool, telemetry, completeness, _settling(fleet))
        consoles = Consoles(host.console)
        sampler = Sampler(
            world.clock,
            host.processes.boottime_ns,
            FrameBuilder(host.host_id, self.run_id),
            checkpoint,
            consoles,
            sender.offer,
            telemetry,
            tasks.spawn,
            host.networks.at_once,
        )
        admission = Admission(world.capacity)
        places = Places(host, consoles)
        agreements = Agreements(host.data_dir / "peers.json")
        connecting = Connecting(host, agreements)
        incarnations = Incarnations(host, places, fleet, sampler, tasks.spawn, connecting)
        adoption = Adoption(
            host, fleet, places, incarnations, admission, sampler, checkpoint.values
        )
        snapshots = Snapshotting(
            host, fleet, incarnations, admission, SnapshotStore(host.data_dir / "snapshots")
        )
        orders = Orders(settings, host, fleet, world.orders, world.announce, world.clock)
        offer = Offer(
            driver=host.driver.name,
            arch=platform.machine().lower(),
            labels=settings.host_labels,
            pool=settings.pool,
            region=settings.region,
        )
        lifecycle = Lifecycle(
            host, fleet, places, incarnations, admission, snapshots, connecting,
            offer=offer, draining=orders.draining,
        )  # fmt: skip
        refusals = Refusals(host.host_id, world.audit, telemetry)
        intake = Intake(
            host.host_id, world.inbox, lifecycle, world.desk, fleet.reporter, refusals,
            telemetry, tasks.spawn,
        )  # fmt: skip
        heartbeat = Heartbeat(
            settings, host, self.run_id, world.driver, admission, fleet, orders,
            world.write_heartbeat, world.clock, telemetry,
        )  # fmt: skip
        watchdog = Watchdog(
            fleet, incarnations, settings.watchdog_s, world.clock, telemetry, tasks.spawn
        )
        watch = Watch(host, fleet, connecting, orders.quarantined, world.clock, telemetry)
        peering = Peering(host, fleet, connecting, agreements, world.peers)
        telemetry.watch_vms(fleet.by_state)
        telemetry.watch_backlog(lambda: sender.waiting)

        await asyncio.to_thread(store.clear_leftovers)
        records = await asyncio.to_thread(store.load)
        await asyncio.to_thread(agreements.load)
        await connecting.open(records)
        await adoption.run(records)
        await snapshots.adopt()
        await watch.compare()
        sampled = asyncio.Event()
        sending = tasks.spawn(sender.run(), "sender")
        sampling = tasks.spawn(sampler.run(sampled), "sampler")
        tasks.spawn(orders.run(), "orders")
        checks = NetworkChecks(host.networks)
        answers = Answers(host.host_id, fleet, consoles, checks, refusals, telemetry)
        tasks.spawn(refusals.run(), "refusals")
        tasks.spawn(world.questions.run(answers), "questions")
        tasks.spawn(intake.keep_alive(), "keepalive")
        tasks.spawn(Forgetting(fleet, world.inbox).run(), "forgetting")
        tasks.spawn(watchdog.run(), "watchdog")
        tasks.spawn(watch.run(), "network-watch")
        tasks.spawn(peering.run(), "peering")
        _log.info("agent.started", run_id=str(self.run_id), driver=host.driver.name)
        # Neither offered nor given a VM before it is known whether the host drains.
        if await orders.known(stop):
            tasks.spawn(heartbeat.run(), "heartbeat")
            world.ready()
            await intake.run(stop)

        await self._bounded("commands", intake.finished(), 0.4)
        sampled.set()
        await asyncio.wait({sampling})
        sender.close()
        await self._bounded("frames", asyncio.wait({sending}), 0.3)
        open_commands = await intake.give_back()
        await refusals.flush()
        await tasks.cancel()
        if await sender.put_away():
            await asyncio.to_thread(former.settle)
        _log.info("agent.ended", open_commands=open_commands, frames_left=sender.waiting)

    async def _bounded(self, what: str, work: Awaitable[object], share: float) -> None:
        """Wait for a part of the end, for its share of the grace period."""
        limit_s = self._settings.grace_s * share
        try:
            async with asyncio.timeout(limit_s):
                await work
        except TimeoutError:
            _log.warning("agent.left_unfinished", what=what, limit_s=round(limit_s, 3))


def _settling(fleet: Fleet) -> Callable[[Outgoing], Awaitable[None]]:
    """What to do with a frame that has arrived: its final samples need not be kept any more."""
    final = int(SampleFlag.FINAL)

    async def on_acked(outgoing: Outgoing) -> None:
        frame = decode_frame(outgoing.payload)
        for row, flags in enumerate(frame.flags):
            if flags & final:
                vm_id = UUID(bytes=frame.vm_ids[16 * row : 16 * row + 16])
                incarnation = int.from_bytes(frame.incarnations[4 * row : 4 * row + 4], "little")
                await fleet.settled(vm_id, incarnation)

    return on_acked
