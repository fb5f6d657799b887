"""Composition root: the agent on this machine and this bus."""

from __future__ import annotations

import asyncio
import os
import resource
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, nullcontext
from pathlib import Path
from uuid import UUID

import structlog

from runtime.buckets import Bucket
from runtime.bus import Bus
from runtime.clock import SystemClock
from runtime.consumer import Consumer
from runtime.errors import FatalError
from runtime.key_mirror import KeyMirror
from runtime.memory import spare_the_collector
from runtime.publisher import Publisher
from runtime.service import Service
from schemas.audit import AuditEntry
from schemas.codec import encode
from schemas.commands import COMMAND_OF
from schemas.errors import ErrorCode
from schemas.events import HostDrained
from schemas.frames import HEADER_COMPLETE_MS
from schemas.hosts import HostInfo, decode_host_info, decode_host_orders
from schemas.subjects import (
    HOST_ORDERS,
    HOSTS,
    VM_COMMANDS,
    host_audit,
    host_event,
    metrics_raw,
    vm_command_to,
    vm_commands_of,
)
from schemas.vms import VmSpec
from vm_agent import low_files
from vm_agent.agent import Agent, World
from vm_agent.cgroups import Cgroups
from vm_agent.data_dir import identity, owned
from vm_agent.disks import in_thread
from vm_agent.drivers.abc import Driver, DriverError
from vm_agent.images import Image, ImageError, ImageStore, render_kernel_args
from vm_agent.intake import ACK_WAIT_S, Message
from vm_agent.kernel import LinuxProcesses
from vm_agent.network.connections import Connections
from vm_agent.network.making import make_connections
from vm_agent.orders import Announce
from vm_agent.peer_words import NatsPeerWords
from vm_agent.ports import BootImage, Host
from vm_agent.probe import Choice, candidates, choose_driver
from vm_agent.process import VmmProcesses
from vm_agent.punctuality import GENERATIONS, YOUNG_OBJECTS, run_first
from vm_agent.questions import NatsQuestions
from vm_agent.refusals import Write
from vm_agent.reporter import NatsDesk
from vm_agent.settings import AgentSettings
from vm_agent.spool import Outgoing
from vm_agent.states import RefusedError
from vm_agent.telemetry import Telemetry
from vm_agent.uids import UidPool

_log = structlog.get_logger("decisec.agent")

_HEALTH_PART = "agent"
_PUBLISH_S = 3.0
"""What a frame may take before it goes to disk: short, since the next try has the same id."""


class StoredImages:
    """`Images` from an image store on disk."""

    def __init__(self, store: ImageStore) -> None:
        self._store = store
        self._reading: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def names(self) -> tuple[str, ...]:
        """Images that VMs can name."""
        return tuple(self._store.names())

    async def prepare(self, driver: str, spec: VmSpec) -> BootImage:
        """The image of a spec; what a VM that exists boots from is verified.

        Raises:
            RefusedError: It cannot be used.
        """
        return await self._prepare(driver, spec, whole=False)

    async def prepare_new(self, driver: str, spec: VmSpec) -> BootImage:
        """The same for a VM that is to be made: the rootfs is verified, too."""
        return await self._prepare(driver, spec, whole=True)

    async def _prepare(self, driver: str, spec: VmSpec, *, whole: bool) -> BootImage:
        try:
            image = await self._open(spec.image, whole=whole)
        except ImageError as error:
            raise RefusedError(ErrorCode.UNKNOWN_IMAGE, str(error)) from error
        try:
            args = render_kernel_args(image, driver, spec.kernel_args)
        except ImageError as error:
            raise RefusedError(ErrorCode.BAD_REQUEST, str(error)) from error
        return BootImage(
            kernel=image.kernel,
            initrd=image.initrd,
            kernel_args=args,
            rootfs=image.rootfs,
            rootfs_bytes=image.manifest.rootfs_bytes or 0,
        )

    async def _open(self, name: str, *, whole: bool) -> Image:
        store = self._store
        image = await asyncio.to_thread(store.recall, name, whole=whole)
        if image is not None:
            return image
        # New VMs wait for one reading of a large image, not each for its own. Boots do not wait.
        async with self._reading[name] if whole else nullcontext():
            return await in_thread(
                lambda go_on: store.open(name, lambda _, at, total: go_on(at, total), whole=whole)
            )


class CommandInbox:
    """`Inbox` on this host's durable consumer."""

    def __init__(self, bus: Bus, host_id: str) -> None:
        self._host_id = host_id
        self._consumer = Consumer(
            bus,
            VM_COMMANDS,
            f"agent-{host_id}",
            filter_subjects=(vm_commands_of(host_id),),
            ack_wait_s=ACK_WAIT_S,
            sole=True,
            gather=False,
        )

    async def batches(self, stop: asyncio.Event) -> AsyncIterator[list[Message]]:
        """Batches until `stop` is set."""
        async for batch in self._consumer.batches(stop):
            yield list(batch)

    async def waits_for(self, vm_id: UUID) -> bool:
        """Whether the stream has a command to this VM; one that is acknowledged has left it."""
        return await self._consumer.holds(
            *(vm_command_to(self._host_id, vm_id, verb) for verb in COMMAND_OF)
        )


class FrameOutlet:
    """`Outlet` to the stream of raw metrics."""

    def __init__(self, bus: Bus, host_id: str) -> None:
        self._bus = bus
        self._subject = metrics_raw(host_id)
        self._publisher = Publisher(bus, ack_timeout_s=_PUBLISH_S)

    @property
    def connected(self) -> bool:
        """Whether the connection stands."""
        return self._bus.connected

    async def publish(self, frame: Outgoing, complete_ms: int | None) -> None:
        """Return once the stream has the frame."""
        headers = {} if complete_ms is None else {HEADER_COMPLETE_MS: str(complete_ms)}
        await self._publisher.publish(
            self._subject, frame.payload, msg_id=frame.msg_id, headers=headers, limit_s=_PUBLISH_S
        )


async def main(service: Service[AgentSettings]) -> None:
    """Run the agent until the service is asked to stop.

    Raises:
        FatalError: The data directory, the probe image or every hypervisor is unusable.
    """
    settings, bus = service.settings, service.bus
    service.health.unready(_HEALTH_PART, "taking over the host")
    _allow_many_files()
    _be_punctual(settings)
    async with AsyncExitStack() as stack:
        data_dir = stack.enter_context(owned(Path(settings.data_dir)))
        processes = VmmProcesses()
        images = ImageStore(settings.images)
        # All of them: a VM that an earlier run started keeps the driver it has.
        drivers = candidates(
            processes,
            firecracker=settings.firecracker,
            jailer=settings.jailer,
            jailed=settings.jailed,
            metrics=settings.metrics,
            qemu_accel=settings.qemu_accel,
        )
        for driver in drivers:
            stack.push_async_callback(driver.close)
        wanted = [d for d in drivers if settings.driver in ("auto", d.name)]
        choice = await _choose(settings, wanted, images, processes, data_dir)
        groups = Cgroups(identity(data_dir))
        stack.callback(groups.close)
        if groups.unavailable:
            _log.warning("limits.unavailable", reason=groups.unavailable)
        connections = await _connections(settings, data_dir)
        stack.push_async_callback(connections.close)
        host = Host(
            host_id=settings.host_id,
            driver=choice.driver,
            drivers={driver.name: driver for driver in drivers},
            images=StoredImages(images),
            networks=connections,
            processes=LinuxProcesses(processes, groups, connections),
            groups=groups,
            uids=_uids(settings),
            data_dir=data_dir,
        )
        world = World(
            host=host,
            capacity=settings.capacity(),
            driver=(choice.probe.version, choice.probe.reason),
            desk=NatsDesk(bus),
            inbox=CommandInbox(bus, settings.host_id),
            outlet=FrameOutlet(bus, settings.host_id),
            write_heartbeat=_heartbeats(bus, settings.host_id),
            orders=KeyMirror(Bucket(bus, HOST_ORDERS, decode_host_orders), settings.host_id),
            peers=NatsPeerWords(bus),
            announce=_announcements(bus),
            audit=_audit(bus, settings.host_id),
            questions=NatsQuestions(bus, settings.host_id),
            clock=SystemClock(),
            ready=lambda: service.health.ready(_HEALTH_PART),
        )
        await Agent(settings, world, Telemetry()).run(service.stop)


async def _choose(
    settings: AgentSettings,
    drivers: list[Driver],
    images: ImageStore,
    processes: VmmProcesses,
    data_dir: Path,
) -> Choice:
    try:
        image = await asyncio.to_thread(images.open, settings.probe_image, whole=False)
        uid = settings.uid_base if os.geteuid() == 0 else None
        choice = await choose_driver(drivers, image, data_dir / "run", processes, uid)
    except ImageError as error:
        raise FatalError(f"the probe image is missing in {settings.images}: {error}") from error
    except DriverError as error:
        raise FatalError(str(error)) from error
    for name, reason in choice.rejected:
        _log.info("driver.rejected", driver=name, reason=reason)
    _log.info("driver.chosen", driver=choice.driver.name, reason=choice.probe.reason)
    return choice


def _allow_many_files() -> None:
    """Raise the soft limit: a VM takes about four descriptors, and the usual limit is 1024.

    Two low ones are kept for sessions with nftables, lest one that ends could not be begun anew.
    """
    low_files.keep(2)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _be_punctual(settings: AgentSettings) -> None:
    spare_the_collector(YOUNG_OBJECTS, GENERATIONS)
    if settings.realtime and (reason := run_first()):
        _log.warning("realtime.unavailable", reason=reason)


def _uids(settings: AgentSettings) -> UidPool | None:
    """Users for VMs; the first one is for trying out drivers."""
    return UidPool(settings.uid_base + 1, settings.slots) if os.geteuid() == 0 else None


async def _connections(settings: AgentSettings, data_dir: Path) -> Connections:
    """What connects VMs: as the settings say, or what is left of earlier settings, or nothing."""
    who = await asyncio.to_thread(identity, data_dir)
    connections = await asyncio.to_thread(make_connections, settings, who, data_dir)
    if connections.unavailable:
        _log.warning("network.unavailable", reason=connections.unavailable)
    return connections


def _heartbeats(bus: Bus, host_id: str) -> Callable[[HostInfo], Awaitable[object]]:
    bucket = Bucket(bus, HOSTS, decode_host_info)
    return lambda info: bucket.put(host_id, info)


def _announcements(bus: Bus) -> Announce:
    publisher = Publisher(bus)

    async def announce(event: HostDrained) -> None:
        await publisher.publish(host_event(event), encode(event), msg_id=str(event.event_id))

    return announce


def _audit(bus: Bus, host_id: str) -> Write:
    publisher = Publisher(bus)
    subject = host_audit(host_id)

    async def write(entry: AuditEntry) -> None:
        await publisher.publish(subject, encode(entry), msg_id=str(entry.event_id))

    return write
