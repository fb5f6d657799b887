"""Puts the gateway together, and takes it down in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog

from gateway.addresses import Addresses
from gateway.admission import Admission
from gateway.attempts import Attempts
from gateway.audit_log import AuditLog
from gateway.auth import Authenticator
from gateway.background import Background
from gateway.commands import CommandDesk
from gateway.consoles import Absent
from gateway.creation import Creation
from gateway.customers import CustomerService
from gateway.door import Door
from gateway.door_reads import DoorReads
from gateway.event_hub import EventHub
from gateway.events import EventService
from gateway.fleet import Fleet
from gateway.host_names import HostNames
from gateway.hosts import HostService
from gateway.http import Services, build
from gateway.idempotency import Keys
from gateway.images import ImageService
from gateway.inventory import Inventory
from gateway.key_sources import key_source
from gateway.limits import Limits
from gateway.live_hub import LiveHub
from gateway.metrics import MetricService
from gateway.mutations import Mutations
from gateway.operation_service import OperationService
from gateway.operations import Operations
from gateway.peers import PeerService
from gateway.place_door import PlaceDoor
from gateway.placement import Strategy
from gateway.placing import Placer, strategies_of
from gateway.price_plans import PricePlanService
from gateway.quota_records import SnapshotRecords, VmRecords
from gateway.quotas import Quotas
from gateway.revocations import Revocations
from gateway.service import VmService
from gateway.settings import GatewaySettings
from gateway.snapshots import SnapshotService
from gateway.streams import Streams
from gateway.tombstones import Tombstones
from gateway.trail import Trail
from gateway.usage_reports import UsageReportService
from gateway.usage_windows import UsageWindowService
from runtime.bus import Bus
from runtime.health import Health, listen, serve_asgi
from runtime.http_guard import ConnectionLimits
from runtime.memory import spare_the_collector
from runtime.publisher import Publisher
from runtime.service import Service

_log = structlog.get_logger("decisec.gateway")

HEALTH_PART = "mirrors"
KEYS_PART = "keys"
_HTTP_GRACE_S = 5.0


async def main(service: Service[GatewaySettings]) -> None:
    """Serve until told to stop."""
    async with gateway(service.settings, service.bus, service.health, service.stop):
        spare_the_collector()
        await service.stop.wait()


@asynccontextmanager
async def gateway(
    settings: GatewaySettings, bus: Bus, health: Health, stop: asyncio.Event
) -> AsyncIterator[int]:
    """A gateway that serves for the length of the block; yields the port of its API.

    The end of the block refuses new requests, lets those in flight finish, then ends the
    followers. Creations under way are picked up by the next gateway that starts.

    Raises:
        FatalError: The key or the address cannot be had.
    """
    health.unready(HEALTH_PART, "the buckets have not been read yet")
    authenticator = _authenticator(settings, bus, health)
    tombstones = Tombstones(Absent(bus))
    trail = Trail(bus)
    fleet = Fleet(
        bus, tombstones.bury, Inventory(settings.command_deadline_s), trail.refused_status
    )
    operations = Operations(bus, tombstones.take)
    desk = CommandDesk(operations, Publisher(bus), settings.publish_limit_s)
    sock = listen(settings.api_host, settings.api_port)
    port = int(sock.getsockname()[1])
    with sock:
        async with _background() as group:
            placer = Placer(
                fleet,
                operations,
                region=settings.region,
                strategy=Strategy(settings.placement),
                strategies=strategies_of(settings),
                begin_within_s=settings.begin_within_s,
            )
            background = Background(group)
            attempts = Attempts(fleet, operations)
            names = HostNames(bus)
            quotas = Quotas(
                bus, fleet.customer, (VmRecords(fleet), SnapshotRecords(fleet)), background
            )
            hosts, plans = HostService(bus, fleet), PricePlanService(bus)
            peers = PeerService(bus, fleet.customer)
            limits = Limits(bus, settings, fleet.customer)
            admission = Admission(settings)
            addresses = Addresses(settings.trusted_proxies)
            creation = Creation(
                fleet,
                operations,
                desk,
                background,
                placer=placer,
                quotas=quotas,
                deadline_s=settings.command_deadline_s,
            )
            service = VmService(
                bus, fleet, operations, desk, creation, quotas, names, settings, background.ending
            )
            group.create_task(authenticator.run(), name="authenticator")
            group.create_task(fleet.run(), name="fleet")
            group.create_task(operations.run(), name="operations")
            group.create_task(operations.remember(), name="history")
            group.create_task(quotas.run(), name="quotas")
            group.create_task(hosts.run(), name="hosts")
            group.create_task(plans.run(), name="price-plans")
            group.create_task(peers.run(), name="peers")
            group.create_task(limits.sharing.run(), name="limits")
            group.create_task(tombstones.run(fleet), name="tombstones")
            if not await _ready(
                stop,
                fleet.synced,
                operations.following,
                authenticator.synced,
                quotas.synced,
                hosts.synced,
                plans.synced,
                peers.synced,
                names.synced,
                limits.sharing.joined,
            ):
                yield port
                return
            resumed = creation.resume()
            snapshots = SnapshotService(fleet, service, operations, quotas)
            images = ImageService(fleet, settings.region)
            keys = Keys(bus)
            group.create_task(keys.run(), name="idempotency-keys")
            group.create_task(trail.run(), name="trail")
            operation_service = OperationService(operations, attempts)
            explainer = PlaceDoor(bus, fleet, placer)
            group.create_task(explainer.run(), name="place-door")
            streams = Streams(settings.streams, settings.streams_per_customer)
            hub = EventHub(bus, names, settings.stream_buffer)
            group.create_task(hub.run(), name="event-hub")
            usage = UsageReportService(bus, names, settings)
            events = EventService(bus, hub, streams, settings)
            metrics = MetricService(bus, fleet, names, LiveHub(bus), streams, settings)
            audit_log = AuditLog(bus, settings.usage_timeout_s)
            door = Door(
                bus,
                service,
                keys,
                trail,
                background,
                limits,
                admission,
                operations=operation_service,
                snapshots=snapshots,
                images=images,
                peers=peers,
                reads=DoorReads(usage, metrics, events, audit_log),
            )
            group.create_task(door.run(), name="door")
            services = Services(
                background=background,
                vms=service,
                mutations=Mutations(keys, trail),
                events=events,
                operations=operation_service,
                snapshots=snapshots,
                images=images,
                metrics=metrics,
                audit_log=audit_log,
                customers=CustomerService(fleet, quotas, plans),
                hosts=hosts,
                price_plans=plans,
                peers=peers,
                usage_reports=usage,
                usage_windows=UsageWindowService(bus, names, settings),
            )
            app = build(
                services,
                authenticator,
                limits,
                admission,
                addresses,
                max_body_bytes=settings.max_body_bytes,
                cors_origins=settings.cors_origins,
            )
            async with serve_asgi(app, sock, _HTTP_GRACE_S, _connections(settings, addresses)):
                health.ready(HEALTH_PART)
                _log.info("api.opened", host=settings.api_host, port=port, resumed=resumed)
                try:
                    yield port
                finally:
                    background.close()
                    streams.close()
            await asyncio.gather(keys.flush(), trail.flush())


def _authenticator(settings: GatewaySettings, bus: Bus, health: Health) -> Authenticator:
    def tell(why: str) -> None:
        health.unready(KEYS_PART, why) if why else health.ready(KEYS_PART)

    revocations = Revocations(bus, max_stale_s=settings.revocations_max_stale_s)
    return Authenticator(key_source(settings, tell), revocations, settings)


def _connections(settings: GatewaySettings, addresses: Addresses) -> ConnectionLimits:
    def name(peer: str) -> str:
        # A proxy has the connections of all its callers.
        return "" if addresses.trusts(peer) else addresses.of(peer)

    return ConnectionLimits(
        connections=settings.max_connections,
        per_address=settings.max_connections_per_address,
        head_s=settings.head_timeout_s,
        body_s=settings.body_timeout_s,
        head_bytes=settings.max_head_bytes,
        address_of=name,
    )


async def _ready(stop: asyncio.Event, *parts: Callable[[], Awaitable[None]]) -> bool:
    """Whether all is read; False if the stop came first."""

    async def read() -> None:
        for part in parts:
            await part()

    async with asyncio.TaskGroup() as group:
        reading = group.create_task(read(), name="buckets-read")
        stopped = group.create_task(stop.wait(), name="buckets-stop")
        await asyncio.wait({reading, stopped}, return_when=asyncio.FIRST_COMPLETED)
        ready = reading.done()
        reading.cancel()
        stopped.cancel()
    return ready


class _EndedError(Exception):
    """Ends a group of tasks that would run for ever."""


@asynccontextmanager
async def _background() -> AsyncIterator[asyncio.TaskGroup]:
    """A group whose tasks are cancelled at the end of the block instead of waited for."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
            raise _EndedError  # noqa: TRY301 - the one way to end a TaskGroup in 3.11
    except* _EndedError:
        pass
