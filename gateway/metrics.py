"""Metrics of a customer's VMs: samples as they come, and series out of the store."""

from __future__ import annotations

import time
from uuid import UUID

import msgspec

from gateway import sse
from gateway.auth import Principal, Scope
from gateway.errors import RefusedError, no_such_vm, unavailable
from gateway.fleet import Fleet
from gateway.host_names import HostNames
from gateway.live_hub import LiveHub, Watcher
from gateway.settings import GatewaySettings
from gateway.store_questions import StoreQuestions, of_customer
from gateway.streams import Streams
from runtime.bus import Bus
from schemas.codec import encode
from schemas.errors import ErrorCode
from schemas.event_lists import StreamNotice
from schemas.series import SeriesQuery, SeriesReport, decode_series_reply
from schemas.subjects import metrics_series

MAX_LIVE_VMS = 1000
"""In one stream."""
_LOOK_S = 1.0
"""How often it is looked where the VMs are."""
_GONE = StreamNotice(code="not_found", message="None of these VMs is there any more.", resume=False)


class MetricService:
    """Answers and streams for principals that are authenticated already.

    Raises RefusedError for what it will not do, and TransientError when the bus is away.
    """

    def __init__(
        self,
        bus: Bus,
        fleet: Fleet,
        names: HostNames,
        hub: LiveHub,
        streams: Streams,
        settings: GatewaySettings,
    ) -> None:
        self._bus = bus
        self._fleet = fleet
        self._names = names
        self._hub = hub
        self._streams = streams
        self._heartbeat_s = settings.stream_heartbeat_s
        self._store = StoreQuestions(bus, settings.usage_timeout_s)

    async def series(self, principal: Principal, query: SeriesQuery) -> SeriesReport:
        """What VMs did, step by step, out of the store.

        VMs that are gone have a past; those that never were, and others', have none.
        """
        principal.require(Scope.USAGE_READ)
        customer_id = principal.customer_id
        reply = await self._store.ask(metrics_series(customer_id), query, decode_series_reply)
        report = of_customer(reply.report, customer_id)
        lost = self._names.all(principal, report.lost_hosts)
        return msgspec.structs.replace(report, lost_hosts=lost)

    async def live(
        self, principal: Principal, vm_ids: tuple[UUID, ...], *endings: sse.Ending
    ) -> sse.EventStream:
        """Samples from now on, of some VMs or of all.

        Args:
            principal: Whose.
            vm_ids: Which; empty for all that there are at any time.
            endings: What ends it besides this gateway's stop and a client that does not read.
        """
        principal.require(Scope.VMS_READ)
        if not self._bus.connected:
            raise unavailable()
        customer_id = principal.customer_id
        if any(self._fleet.get(customer_id, vm_id) is None for vm_id in vm_ids):
            raise no_such_vm()
        wanted = frozenset(vm_ids) or None
        if len(self._fleet.placed(customer_id, wanted)) > MAX_LIVE_VMS:
            raise RefusedError(
                ErrorCode.BAD_REQUEST, f"There are more than {MAX_LIVE_VMS} VMs: name some."
            )
        return await sse.begin(self._chunks(customer_id, wanted), self._streams.closed, *endings)

    async def _chunks(self, customer_id: str, wanted: frozenset[UUID] | None) -> sse.Chunks:
        watcher = Watcher(customer_id, wanted)
        with self._streams.room(customer_id, "metrics"):
            try:
                await self._follow(watcher, wanted)
                yield sse.HEARTBEAT
                looked_s = said_s = time.monotonic()
                while True:
                    samples = await watcher.take(min(_LOOK_S, self._heartbeat_s))
                    now_s = time.monotonic()
                    if now_s - looked_s >= _LOOK_S:
                        looked_s = now_s
                        await self._follow(watcher, wanted)
                    if samples:
                        said_s = now_s
                        yield b"".join(sse.event("sample", encode(one)) for one in samples)
                    elif now_s - said_s >= self._heartbeat_s:
                        said_s = now_s
                        yield sse.HEARTBEAT
            finally:
                await self._hub.look(watcher, frozenset())

    async def _follow(self, watcher: Watcher, wanted: frozenset[UUID] | None) -> None:
        placed = self._fleet.placed(watcher.customer_id, wanted)
        if wanted is not None and not placed:
            raise sse.StreamEndedError(_GONE)
        watcher.keep_to({vm_id.bytes for vm_id in placed})
        await self._hub.look(watcher, frozenset(placed.values()))
