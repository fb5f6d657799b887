"""With whom customers agree, as the bus last told of it, from both sides."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime

from runtime.buckets import Bucket, Mirror
from runtime.bus import Bus
from schemas.network_peers import (
    CustomerPeers,
    PeerHalf,
    PeerState,
    PeerView,
    decode_customer_peers,
)
from schemas.subjects import NETWORK_PEERS

_SHOWN_WITHIN_S = 1.0
_NOBODY: Mapping[str, PeerHalf] = {}


class PeerBook:
    """The mirrored bucket.

    Args:
        bus: The connection.

    Attributes:
        bucket: To read and write what stands on the server.
    """

    def __init__(self, bus: Bus) -> None:
        self.bucket = Bucket(bus, NETWORK_PEERS, decode_customer_peers)
        self._mirror = Mirror(self.bucket, self._take)
        self._halves: dict[str, Mapping[str, PeerHalf]] = {}
        self._asking: dict[str, set[str]] = {}

    async def run(self) -> None:
        """Follow the bucket until cancelled."""
        await self._mirror.run()

    async def synced(self) -> None:
        """Return once everything that stood at the start is there."""
        await self._mirror.synced()

    async def shown(self, revision: int) -> None:
        """Wait until all is seen that was written up to a revision, a second at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_SHOWN_WITHIN_S):
                await self._mirror.reached(revision)

    def agreeing(self) -> Iterator[str]:
        """Customers that agree with anybody."""
        return iter(tuple(self._halves))

    def halves(self, customer_id: str) -> Mapping[str, PeerHalf]:
        """With whom a customer agrees."""
        return self._halves.get(customer_id, _NOBODY)

    def asking(self, customer_id: str) -> frozenset[str]:
        """Who agrees with a customer."""
        return frozenset(self._asking.get(customer_id, ()))

    def view(self, customer_id: str, peer_id: str, *, heard: bool) -> PeerView:
        """How far a customer and another one agree; not `heard`: whatever the other one says."""
        mine = self.halves(customer_id).get(peer_id)
        theirs = self.halves(peer_id).get(customer_id) if heard else None
        state, since = _state(mine, theirs)
        return PeerView(customer_id=peer_id, state=state, since=since)

    def _take(self, customer_id: str, peers: CustomerPeers | None) -> None:
        before = self._halves.pop(customer_id, _NOBODY)
        now = peers.halves if peers is not None else _NOBODY
        if now:
            self._halves[customer_id] = now
        for peer_id in before.keys() - now.keys():
            asking = self._asking[peer_id]
            asking.discard(customer_id)
            if not asking:
                del self._asking[peer_id]
        for peer_id in now.keys() - before.keys():
            self._asking.setdefault(peer_id, set()).add(customer_id)


def _state(mine: PeerHalf | None, theirs: PeerHalf | None) -> tuple[PeerState, datetime | None]:
    match mine, theirs:
        case PeerHalf(), PeerHalf():
            return PeerState.AGREED, max(mine.since, theirs.since)
        case PeerHalf(), None:
            return PeerState.WAITING, mine.since
        case None, PeerHalf():
            return PeerState.ASKED, theirs.since
        case _:
            return PeerState.NONE, None
