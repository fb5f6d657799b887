"""Lets VMs of customers that agree reach each other, and no others.

What customers say is followed, not looked at in turn: while nobody says anything, and no customer
comes or goes, half a second costs a comparison of two small tables.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Protocol
from uuid import UUID

import structlog

from vm_agent.agreements import Agreements
from vm_agent.connecting import Connecting
from vm_agent.fleet import Fleet
from vm_agent.network.taps import NetworkError
from vm_agent.ports import Host

_log = structlog.get_logger("decisec.peers")

_LOOK_S = 0.5
"""How often it is looked whether customers have come or gone, and tried again what was refused."""

_REST_S = 0.1


class PeerWords(Protocol):
    """What customers say; `vm_agent.peer_words.NatsPeerWords` on the bus.

    Attributes:
        told: Set once something has changed.
    """

    told: asyncio.Event

    @property
    def said(self) -> Mapping[str, frozenset[str]]:
        """With whom customers agree: those that are wanted, as soon as it was heard of them."""

    def want(self, customers: frozenset[str]) -> None:
        """Follow these customers, and no others."""

    def changed(self) -> set[str]:
        """Customers of whom something else was heard since the last call."""

    async def run(self) -> None:
        """Follow until cancelled."""


class Peering:
    """Keeps the rules of all VMs as customers agree.

    Args:
        host: The host.
        fleet: Its VMs.
        connecting: Lets rules hold.
        agreements: What is agreed.
        words: What customers say.
    """

    def __init__(
        self,
        host: Host,
        fleet: Fleet,
        connecting: Connecting,
        agreements: Agreements,
        words: PeerWords,
    ) -> None:
        self._networks = host.networks
        self._fleet = fleet
        self._connecting = connecting
        self._agreements = agreements
        self._words = words
        self._tenants: dict[str, int] = {}
        self._owed: set[UUID] = set()

    async def run(self) -> None:
        """Follow what customers say until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._words.run(), name="peer-words")
            group.create_task(self._follow_on(), name="peer-rules")

    async def _follow_on(self) -> None:
        while True:
            self._words.told.clear()
            if await self.follow():
                # Who changes his mind all the time takes no time from others.
                await asyncio.sleep(_REST_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._words.told.wait()

    async def follow(self) -> bool:
        """Let hold what customers say now; nothing happens if it does. Whether anything did."""
        stale = self._words.changed() | self._moved()
        if stale:
            changes = self._agreements.judged(stale, self._words.said, self._tenants.keys())
            if changes:
                await asyncio.to_thread(self._agreements.keep, changes)
                self._agreements.hold(changes)
                _log.info("peers.changed", customers=len(changes))
            self._owe(stale | changes.keys())
        owed = tuple(self._owed)
        refused = [error for vm_id in owed if (error := await self._renew(vm_id)) is not None]
        if refused:
            _log.error("peers.not_in_force", vms=len(refused), error=str(refused[0]))
        return bool(owed)

    def _moved(self) -> set[str]:
        """Customers that have come or gone, or have another number."""
        before, now = self._tenants, self._networks.tenants
        if before == now:
            return set()
        self._tenants = dict(now)
        self._words.want(frozenset(now))
        return {one for one in before.keys() | now.keys() if before.get(one) != now.get(one)}

    def _owe(self, customers: set[str]) -> None:
        """The rules of all VMs about whose customers, or about whose peers, something is new."""
        about = customers.union(*map(self._agreements.of, customers))
        self._owed |= {vm.vm_id for vm in self._fleet.vms if vm.record.customer_id in about}

    async def _renew(self, vm_id: UUID) -> NetworkError | None:
        vm = self._fleet.get(vm_id)
        if vm is not None:
            try:
                await self._connecting.renew(vm)
            except NetworkError as error:
                return error
        self._owed.discard(vm_id)
        return None
