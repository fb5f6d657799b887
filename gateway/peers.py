"""Peers: customers who agree that their VMs reach each other on a host.

Each gives a half of its own, and can take it back at any time. Nothing here says whether there is
such a customer: one who is missing, closed or silent has just not agreed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import structlog

from gateway.auth import Principal, Scope
from gateway.contention import written
from gateway.cursors import digest, name_only, seal, unseal
from gateway.errors import RefusedError
from gateway.peer_book import PeerBook
from runtime.bus import Bus
from runtime.clock import utc_now
from runtime.errors import TransientError
from schemas.api import FieldProblem
from schemas.errors import ErrorCode, InvalidIdError
from schemas.hosts import Customer, CustomerStatus
from schemas.ids import RESERVED_CUSTOMERS, token
from schemas.network_peers import (
    MAX_ADDED,
    MAX_HALVES,
    CustomerPeers,
    PeerHalf,
    PeerList,
    PeerState,
    PeerView,
)

_log = structlog.get_logger("decisec.peers")

_SWEEP_S = 1.0
_NO_PEERS = CustomerPeers()


class PeerService:
    """Every question and every change about peers.

    Each method raises RefusedError for what it will not do, and TransientError when the bus cannot
    be reached.

    Args:
        bus: The connection.
        customer_of: The operator's entry of a customer, if there is one.
    """

    def __init__(self, bus: Bus, customer_of: Callable[[str], Customer | None]) -> None:
        self._book = PeerBook(bus)
        self._customer_of = customer_of

    async def run(self) -> None:
        """Follow the bucket, and take back what closed customers agreed to, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._book.run(), name="mirror-peers")
            group.create_task(self._sweep(), name="peers-of-closed")

    async def synced(self) -> None:
        """Return once it is known who agrees with whom."""
        await self._book.synced()

    def page(
        self, principal: Principal, state: PeerState | None, *, cursor: str, limit: int
    ) -> PeerList:
        """Whom one agrees with, and who agrees with one, by name.

        Raises:
            RefusedError: BAD_REQUEST for a wrong cursor.
        """
        principal.require(Scope.VMS_READ)
        me = principal.customer_id
        sealed_with = digest("peers", me, state)
        begin = unseal(sealed_with, cursor)
        last = begin.name if begin else ""
        names = self._book.halves(me).keys() | self._book.asking(me)
        found: list[PeerView] = []
        for peer_id in sorted(name for name in names if name > last):
            view = self._view(me, peer_id)
            if view.state is PeerState.NONE or state not in (None, view.state):
                continue
            if len(found) == limit:
                next_cursor = seal(sealed_with, name_only(found[-1].customer_id))
                return PeerList(peers=tuple(found), next_cursor=next_cursor)
            found.append(view)
        return PeerList(peers=tuple(found))

    async def add(self, principal: Principal, peer_id: str) -> PeerView:
        """Agree with a customer; once more changes nothing.

        Raises:
            RefusedError: BAD_REQUEST for what can be no other customer, CONFLICT if there are too
                many, RATE_LIMITED, FORBIDDEN for a customer who is not active.
        """
        principal.require(Scope.VMS_WRITE)
        me = principal.customer_id
        _check(me, peer_id)
        customer = self._customer_of(me)
        if customer is not None and customer.status is not CustomerStatus.ACTIVE:
            raise RefusedError(
                ErrorCode.FORBIDDEN,
                f"This customer is {customer.status.value}: it can take back what it agreed to, "
                "and agree to nothing.",
            )

        def change(peers: CustomerPeers) -> CustomerPeers:
            if peer_id in peers.halves:
                return peers
            if len(peers.halves) >= MAX_HALVES:
                raise RefusedError(
                    ErrorCode.CONFLICT,
                    f"You agree with {MAX_HALVES} customers already, and with more you cannot. "
                    "Take one back first.",
                )
            now = utc_now()
            minute, passed_s = divmod(int(now.timestamp()), 60)
            added = 1 + (peers.added if peers.minute == minute else 0)
            if added > MAX_ADDED:
                raise RefusedError(
                    ErrorCode.RATE_LIMITED,
                    f"You have agreed with customers {MAX_ADDED} times in this minute. Try again "
                    f"in {60 - passed_s} s.",
                    retry_after_s=60 - passed_s,
                )
            halves = {**peers.halves, peer_id: PeerHalf(since=now)}
            return CustomerPeers(halves=halves, minute=minute, added=added)

        await self._change(me, change)
        return self._view(me, peer_id)

    async def remove(self, principal: Principal, peer_id: str) -> PeerView:
        """Agree no more; nothing changes if one did not.

        Raises:
            RefusedError: BAD_REQUEST for what can be no other customer.
        """
        principal.require(Scope.VMS_WRITE)
        me = principal.customer_id
        _check(me, peer_id)

        def change(peers: CustomerPeers) -> CustomerPeers:
            if peer_id not in peers.halves:
                return peers
            left = {name: half for name, half in peers.halves.items() if name != peer_id}
            return msgspec.structs.replace(peers, halves=left)

        await self._change(me, change)
        return self._view(me, peer_id)

    def _view(self, customer_id: str, peer_id: str) -> PeerView:
        return self._book.view(customer_id, peer_id, heard=not self._closed(peer_id))

    def _closed(self, customer_id: str) -> bool:
        customer = self._customer_of(customer_id)
        return customer is not None and customer.status is CustomerStatus.CLOSED

    async def _change(
        self, customer_id: str, change: Callable[[CustomerPeers], CustomerPeers]
    ) -> None:
        """Write a change to what stands, again if somebody else was faster."""
        bucket = self._book.bucket

        async def attempt() -> int:
            entry = await bucket.get(customer_id)
            stands, revision = (entry.value, entry.revision) if entry else (_NO_PEERS, 0)
            wanted = change(stands)
            if wanted is stands:
                return revision
            return await bucket.update(customer_id, wanted, revision)

        # What the other one said before is seen then, too.
        await self._book.shown(await written(attempt, "your peers"))

    async def _sweep(self) -> None:
        """Of a closed customer nothing is left that would hold again if it were opened."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            for customer_id in self._book.agreeing():
                if not self._closed(customer_id):
                    continue
                try:
                    await self._change(customer_id, lambda _: _NO_PEERS)
                except (TransientError, RefusedError) as error:
                    _log.warning("peers.not_ended", customer=customer_id, error=str(error))
                else:
                    _log.info("peers.ended", customer=customer_id)


def _check(customer_id: str, peer_id: str) -> None:
    """Go on only with what can be another customer."""
    try:
        token(peer_id)
    except InvalidIdError as error:
        raise _wrong(str(error)) from None
    if peer_id == customer_id:
        raise _wrong("a customer's own VMs reach each other anyway")
    if peer_id in RESERVED_CUSTOMERS:
        raise _wrong("no customer can be called so")


def _wrong(message: str) -> RefusedError:
    return RefusedError(
        ErrorCode.BAD_REQUEST,
        f"peer_id: {message}",
        fields=(FieldProblem(field="peer_id", message=message),),
    )
