"""Puts the gateway together, and takes it down in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog

from gateway.addresses import Addresses
from gateway.admission import Admission
from gateway.auth import Authenticator
from gateway.commands import CommandDesk
from gateway.creation import Creation
from gateway.door import Door
from gateway.fleet import Fleet
from gateway.http import build
from gateway.keys import key_source
from gateway.limits import Limits
from gateway.operations import Operations
from gateway.quotas import Quotas, VmRecords
from gateway.service import VmService
from gateway.settings import GatewaySettings
from gateway.tombstones import Tombstones
from runtime.bus import Bus
from runtime.health import Health, listen, serve_asgi
from runtime.http_guard import ConnectionLimits
from runtime.memory import spare_the_collector
from runtime.publisher import Publisher
from runtime.service import Service

_log = structlog.get_logger("decisec.gateway")

HEALTH_PART = "mirrors"
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
    authenticator = Authenticator(key_source(settings), settings)
    tombstones = Tombstones()
    fleet = Fleet(bus, tombstones.bury)
    operations = Operations(bus, tombstones.take)
    desk = CommandDesk(operations, Publisher(bus), settings.publish_limit_s)
    sock = listen(settings.api_host, settings.api_port)
    port = int(sock.getsockname()[1])
    with sock:
        async with _background() as group:
            quotas = Quotas(bus, fleet.customer, (VmRecords(fleet),), group)
            creation = Creation(
                fleet,
                operations,
                desk,
                group,
                quotas=quotas,
                region=settings.region,
                deadline_s=settings.command_deadline_s,
            )
            service = VmService(bus, fleet, operations, desk, creation, quotas, settings)
            limits = Limits(bus, settings, fleet.customer)
            admission = Admission(settings)
            group.create_task(fleet.run(), name="fleet")
            group.create_task(operations.run(), name="operations")
            group.create_task(quotas.run(), name="quotas")
            group.create_task(limits.sharing.run(), name="limits")
            group.create_task(tombstones.run(fleet), name="tombstones")
            if not await _ready(
                stop, fleet.synced, operations.following, quotas.synced, limits.sharing.joined
            ):
                yield port
                return
            resumed = creation.resume()
            group.create_task(Door(bus, service, limits, admission, group).run(), name="door")
            addresses = Addresses(settings.trusted_proxies)
            app = build(service, authenticator, limits, admission, addresses, settings)
            async with serve_asgi(app, sock, _HTTP_GRACE_S, _connections(settings, addresses)):
                health.ready(HEALTH_PART)
                _log.info("api.opened", host=settings.api_host, port=port, resumed=resumed)
                yield port


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
