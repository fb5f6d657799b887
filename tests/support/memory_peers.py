"""What customers say of each other, in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping


class MemoryPeers:
    """`PeerWords` of an agent; outlives it, as the bus does.

    Attributes:
        halves: With whom customers agree, whoever hears of it.
        away: Nothing is heard.
    """

    def __init__(self) -> None:
        self.told = asyncio.Event()
        self.halves: dict[str, set[str]] = {}
        self.away = False
        self._wanted: frozenset[str] = frozenset()
        self._said: dict[str, frozenset[str]] = {}
        self._changed: set[str] = set()

    def say(self, customer_id: str, peer_id: str, *, agrees: bool = True) -> None:
        """Let a customer agree with another one, or no more."""
        halves = self.halves.setdefault(customer_id, set())
        halves.add(peer_id) if agrees else halves.discard(peer_id)
        self.hear()

    def forget(self) -> None:
        """Begin anew, as the next run of an agent does."""
        self._wanted, self._said, self._changed = frozenset(), {}, set()

    def hear(self) -> None:
        """Tell what is to be told."""
        for customer_id in self._wanted if not self.away else ():
            peers = frozenset(self.halves.get(customer_id, ()))
            if self._said.get(customer_id) != peers:
                self._said[customer_id] = peers
                self._changed.add(customer_id)
                self.told.set()

    @property
    def said(self) -> Mapping[str, frozenset[str]]:
        """`PeerWords`."""
        return self._said

    def want(self, customers: frozenset[str]) -> None:
        """`PeerWords`."""
        for gone in self._wanted - customers:
            self._said.pop(gone, None)
        self._wanted = customers
        self.hear()

    def changed(self) -> set[str]:
        """`PeerWords`."""
        changed, self._changed = self._changed, set()
        return changed

    async def run(self) -> None:
        """`PeerWords`."""
        await asyncio.Event().wait()
