"""Answers `place.ask.explain`: where a VM would be placed, and why nowhere else."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog

from gateway.fleet import Fleet
from gateway.placement import Demand, Strategy, rank_of
from gateway.placing import Placer
from runtime.bus import Bus, Message
from runtime.clock import utc_now
from schemas.codec import encode
from schemas.errors import ErrorCode, ErrorInfo, MalformedMessageError
from schemas.hosts import HostInfo, Resources
from schemas.ids import new_id
from schemas.places import (
    MAX_VERDICTS,
    HostVerdict,
    PlaceExplanation,
    PlaceQuestion,
    PlaceReply,
    decode_place_question,
)
from schemas.subjects import PLACE_EXPLAIN

_log = structlog.get_logger("decisec.place_door")

QUEUE = "gateway"


class PlaceDoor:
    """Explains placements. Whoever may ask is an operator (by subject).

    Args:
        bus: The connection.
        fleet: Hosts, records and customers.
        placer: Would place.
    """

    def __init__(self, bus: Bus, fleet: Fleet, placer: Placer) -> None:
        self._bus = bus
        self._fleet = fleet
        self._placer = placer

    async def run(self) -> None:
        """Answer until cancelled."""
        subscription = await self._bus.subscribe(PLACE_EXPLAIN, self._answer, queue=QUEUE)
        try:
            await asyncio.Event().wait()
        finally:
            if self._bus.connected:
                await subscription.unsubscribe()

    async def _answer(self, message: Message) -> bytes | None:
        if not message.reply:
            return None
        try:
            question = decode_place_question(message.data)
        except MalformedMessageError as error:
            info = ErrorInfo(code=ErrorCode.BAD_REQUEST, message=str(error))
            return encode(PlaceReply(error=info))
        return encode(PlaceReply(explanation=self.explain(question)))

    def explain(self, question: PlaceQuestion) -> PlaceExplanation:
        """What would become of a VM, host by host."""
        spec, customer_id, now = question.spec, question.customer_id, utc_now()
        customer = self._fleet.customer(customer_id) if customer_id else None
        pool = question.pool or (customer.pool if customer else "default")
        peers = self._fleet.peers(customer_id, spec) if customer_id else {}
        strategy = self._placer.strategy(pool)
        choice = self._placer.choose(customer_id or "", new_id(), spec, pool, now)
        demand = Demand(spec, now, silent=self._placer.silent(), peers=peers)
        inventory = self._fleet.inventory
        hosts = list(inventory.pool(pool, self._placer.region))
        verdicts = [_verdict(host, inventory.taken(host.host_id), demand, peers) for host in hosts]
        if strategy is Strategy.PACK:
            verdicts.reverse()
        # A stable sort: what is equal stays in the order of room.
        verdicts.sort(key=lambda verdict: (bool(verdict.reason), verdict.peers))
        return PlaceExplanation(
            host_id=choice.host.host_id if choice.host else None,
            why=choice.why,
            error=None if choice.host else choice.error,
            pool=pool,
            region=self._placer.region,
            strategy=strategy.value,
            hosts=tuple(verdicts[:MAX_VERDICTS]),
            left_out=max(0, len(verdicts) - MAX_VERDICTS),
            elsewhere=len(inventory.hosts) - len(hosts),
        )


def _verdict(
    host: HostInfo, taken: Resources | None, demand: Demand, peers: Mapping[str, int]
) -> HostVerdict:
    in_flight = taken or Resources()
    left = {
        name: max(0, getattr(host.free, name) - getattr(in_flight, name))
        for name in Resources.__struct_fields__
    }
    return HostVerdict(
        host_id=host.host_id,
        reason=demand.unfit(host, taken),
        free=Resources(**left),
        in_flight=in_flight,
        vms=rank_of(host, taken)[1],
        peers=peers.get(host.host_id, 0),
    )
