"""The network of VMs: whether it works, and whose VMs one's own reach; for both clients."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from uuid import UUID

from decisec.sdk import calls
from decisec.sdk.calls import Call, T
from schemas.network_checks import NetworkCheck
from schemas.network_peers import PeerState, PeerView


class Network:
    """What `Client` has about the network of VMs."""

    def _send(self, call: Call[T], attempts: int = 0) -> T:
        raise NotImplementedError

    def check_network(self, vm_id: UUID | str) -> NetworkCheck:
        """Whether a VM can be reached, proven by probes to its own addresses.

        They count as received by the VM. Takes a second or two.
        """
        return self._send(calls.check_network(vm_id))

    def list_peers(
        self, *, state: PeerState | None = None, page_size: int = 100
    ) -> Iterator[PeerView]:
        """Customers that you agree with or that agree with you, by name, page by page."""
        cursor = ""
        while True:
            page = self._send(calls.list_peers(state, page_size, cursor))
            yield from page.peers
            cursor = page.next_cursor
            if not cursor:
                return

    def add_peer(self, customer_id: str) -> PeerView:
        """Agree that your VMs and theirs reach each other; they do once the other one agrees.

        Examples:
            >>> client.add_peer("globex").state.value
            'waiting'
            >>> [(peer.customer_id, peer.state.value) for peer in client.list_peers()]
            [('globex', 'waiting')]
            >>> client.remove_peer("globex").state.value
            'none'
        """
        return self._send(calls.add_peer(customer_id))

    def remove_peer(self, customer_id: str) -> PeerView:
        """Agree to that no more: the VMs are cut off from each other within a second."""
        return self._send(calls.remove_peer(customer_id))


class AsyncNetwork:
    """What `AsyncClient` has about the network of VMs."""

    async def _send(self, call: Call[T], attempts: int = 0) -> T:
        raise NotImplementedError

    async def check_network(self, vm_id: UUID | str) -> NetworkCheck:
        """Whether a VM can be reached, proven by probes to its own addresses.

        They count as received by the VM. Takes a second or two.
        """
        return await self._send(calls.check_network(vm_id))

    async def list_peers(
        self, *, state: PeerState | None = None, page_size: int = 100
    ) -> AsyncIterator[PeerView]:
        """Customers that you agree with or that agree with you, by name, page by page."""
        cursor = ""
        while True:
            page = await self._send(calls.list_peers(state, page_size, cursor))
            for peer in page.peers:
                yield peer
            cursor = page.next_cursor
            if not cursor:
                return

    async def add_peer(self, customer_id: str) -> PeerView:
        """Agree that your VMs and theirs reach each other; they do once the other one agrees."""
        return await self._send(calls.add_peer(customer_id))

    async def remove_peer(self, customer_id: str) -> PeerView:
        """Agree to that no more: the VMs are cut off from each other within a second."""
        return await self._send(calls.remove_peer(customer_id))
