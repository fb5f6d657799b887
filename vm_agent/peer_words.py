"""With whom customers agree, heard on the bus.

What is stored comes as core messages with its place, so what the server refuses is not believed,
and nothing older than what is known. Whatever might have been missed is looked at: all customers
after a reconnect, and each once in two minutes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from contextlib import suppress

import structlog

from runtime.buckets import Bucket
from runtime.bus import Bus, Message
from runtime.errors import PoisonError, TransientError
from schemas.errors import InvalidIdError
from schemas.network_peers import CustomerPeers, decode_customer_peers
from schemas.subjects import NETWORK_PEERS, PEERS_STORED, customer_of

_log = structlog.get_logger("decisec.peers")

_ROUND_S = 120
_PAUSE_S = 1.0
_AT_ONCE = 32
_PLACE = "Nats-Sequence"


class NatsPeerWords:
    """`PeerWords` from the bucket.

    Args:
        bus: The connection.
    """

    def __init__(self, bus: Bus) -> None:
        self.told = asyncio.Event()
        self._bus = bus
        self._bucket = Bucket(bus, NETWORK_PEERS, decode_customer_peers)
        self._wanted: frozenset[str] = frozenset()
        self._said: dict[str, frozenset[str]] = {}
        self._revisions: dict[str, int] = {}
        self._changed: set[str] = set()
        self._due: deque[str] = deque()
        self._awaited = asyncio.Event()
        self._silent = False

    @property
    def said(self) -> Mapping[str, frozenset[str]]:
        """`PeerWords`."""
        return self._said

    def want(self, customers: frozenset[str]) -> None:
        """`PeerWords`."""
        for gone in self._wanted - customers:
            self._said.pop(gone, None)
            self._revisions.pop(gone, None)
        self._due.extendleft(customers - self._wanted)
        self._wanted = customers
        self._awaited.set()

    def changed(self) -> set[str]:
        """`PeerWords`."""
        changed, self._changed = self._changed, set()
        return changed

    async def run(self) -> None:
        """`PeerWords`."""
        subscription = await self._bus.subscribe(PEERS_STORED, self._hear)
        try:
            await self._look_on()
        finally:
            if self._bus.connected:
                await subscription.unsubscribe()

    async def _look_on(self) -> None:
        epoch = self._bus.epoch
        turn: list[str] = []
        while True:
            self._awaited.clear()
            if epoch != self._bus.epoch:
                # Whatever was said meanwhile, also in a bucket that was made anew.
                epoch = self._bus.epoch
                self._revisions.clear()
                self._due = deque(self._wanted)
            elif not self._due:
                turn = turn or list(self._wanted)
                count = -(-len(self._wanted) // int(_ROUND_S / _PAUSE_S))
                self._due.extend(turn[:count])
                del turn[:count]
            await self._look()
            with suppress(TimeoutError):
                async with asyncio.timeout(_PAUSE_S):
                    await self._awaited.wait()

    async def _look(self) -> None:
        """Look at those whose turn it is; what fails is tried again the next time."""
        while self._due and self._bus.connected:
            batch = [self._due.popleft() for _ in range(min(_AT_ONCE, len(self._due)))]
            async with asyncio.TaskGroup() as group:
                looks = [group.create_task(self._look_at(one)) for one in batch]
            missed = [one for one, look in zip(batch, looks, strict=True) if not look.result()]
            self._due.extendleft(missed)
            if missed:
                return

    async def _look_at(self, customer_id: str) -> bool:
        try:
            entry = await self._bucket.get(customer_id)
        except TransientError as error:
            if not self._silent:
                _log.warning("peers.not_heard", error=str(error))
            self._silent = True
            return False
        except PoisonError as error:
            self._refuse(customer_id, self._revisions.get(customer_id, 0), error)
            return True
        self._silent = False
        if entry is not None:
            self._take(customer_id, entry.value, entry.revision)
        elif customer_id not in self._revisions:
            # Values are never removed: after one, nothing is an old word.
            self._take(customer_id, CustomerPeers(), 0)
        return True

    async def _hear(self, message: Message) -> None:
        place = message.headers.get(_PLACE, "")
        with suppress(InvalidIdError):
            customer_id = customer_of(message.subject)
            if customer_id not in self._wanted or not place.isdigit():
                return
            try:
                peers = self._bucket.decode(customer_id, message.data)
            except PoisonError as error:
                self._refuse(customer_id, int(place), error)
            else:
                self._take(customer_id, peers, int(place))

    def _refuse(self, customer_id: str, revision: int, error: PoisonError) -> None:
        """What cannot be read agrees with nobody."""
        _log.error("value.refused", bucket=NETWORK_PEERS, key=customer_id, error=str(error))
        self._take(customer_id, CustomerPeers(), revision)

    def _take(self, customer_id: str, peers: CustomerPeers, revision: int) -> None:
        if customer_id not in self._wanted or revision < self._revisions.get(customer_id, 0):
            return
        if revision:
            self._revisions[customer_id] = revision
        said = frozenset(peers.halves)
        if self._said.get(customer_id) != said:
            self._said[customer_id] = said
            self._changed.add(customer_id)
            self.told.set()
