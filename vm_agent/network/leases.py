"""Who has which slot, customer's number and addresses on this host.

A VM keeps its lease from create to delete, over stops and restarts of the agent: it stands in the
VM's record, which is durable before anything is made of it. All else follows from the slot: names,
MAC and the interface half of the IPv6 address, which is the one that a guest gives itself by
stateless autoconfiguration (RFC 4862 with RFC 4291, appendix A), so a guest needs no agent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from uuid import UUID

from schemas.errors import ErrorCode
from schemas.networking import Networking
from vm_agent.network.attachment import interface_id
from vm_agent.network.lease import Lease, mac_of
from vm_agent.network.numbers import Numbers
from vm_agent.states import RefusedError

SLOTS = 2**32 - 1
_HALF = 64


@dataclass(frozen=True, slots=True)
class Ranges:
    """What a host's VMs get addresses from.

    Attributes:
        prefix: Routed to this host; a /64 or more. Its first /64 is for all VMs that get one
            address each, the others for those that get a /64.
        ipv4: Routed to this host, every address of them.
    """

    prefix: IPv6Network
    ipv4: tuple[IPv4Network, ...] = ()

    @property
    def shared(self) -> IPv6Network:
        """The /64 of the VMs that get one address."""
        return IPv6Network((self.prefix.network_address, _HALF))

    @property
    def gateway(self) -> IPv6Address:
        """The host's own address, which errors come from. Guests' have `ff:fe` in them."""
        return self.prefix.network_address + 1

    @property
    def networks(self) -> int:
        """How many VMs can get a /64."""
        return int(2 ** (_HALF - self.prefix.prefixlen)) - 1

    @property
    def ipv4_addresses(self) -> int:
        """How many VMs can get an IPv4 address."""
        return sum(network.num_addresses for network in self.ipv4)

    def network(self, number: int) -> IPv6Network:
        """The /64 of a number from 0 to `networks` - 1."""
        first = int(self.prefix.network_address) + ((number + 1) << _HALF)
        return IPv6Network((first, _HALF))

    def ipv4_address(self, number: int) -> IPv4Address:
        """The IPv4 address of a number from 0 to `ipv4_addresses` - 1."""
        for network in self.ipv4:
            if number < network.num_addresses:
                return network[number]
            number -= network.num_addresses
        raise IndexError(number)

    def names(self) -> tuple[str, ...]:
        """For people."""
        return (str(self.prefix), *map(str, self.ipv4))


class Leases:
    """The leases of all VMs on this host.

    Args:
        ranges: What is given out.
        numbers: Which numbers were given out already.
    """

    def __init__(self, ranges: Ranges, numbers: Numbers) -> None:
        self.ranges = ranges
        self._numbers = numbers
        self._held: dict[UUID, Lease] = {}
        self._customers: dict[UUID, str] = {}
        self._tenants: dict[str, int] = {}
        self._lock = asyncio.Lock()

    @property
    def held(self) -> Mapping[UUID, Lease]:
        """Leases by VM."""
        return self._held

    @property
    def tenants(self) -> Mapping[str, int]:
        """Numbers of the customers that have a VM here."""
        return self._tenants

    def restore(self, vm_id: UUID, customer_id: str, lease: Lease) -> None:
        """Hold what a VM has already, also from other ranges than today's."""
        self._held[vm_id] = lease
        self._customers[vm_id] = customer_id
        self._tenants[customer_id] = lease.tenant

    def release(self, vm_id: UUID) -> None:
        """Give back what a VM has; nothing happens if it has nothing."""
        if self._held.pop(vm_id, None) is None:
            return
        customer_id = self._customers.pop(vm_id)
        if customer_id not in self._customers.values():
            del self._tenants[customer_id]

    async def take(self, vm_id: UUID, customer_id: str, wish: Networking) -> Lease:
        """What a VM has, or gets. One from ranges that are no longer the host's is replaced.

        Raises:
            RefusedError: With `no_capacity`, naming what there is none left of.
        """
        async with self._lock:
            held = self._held.get(vm_id)
            if held is not None and self._fits(held, wish):
                return held
            lease = await asyncio.to_thread(self._make, held, customer_id, wish)
            self.restore(vm_id, customer_id, lease)
            return lease

    def _make(self, held: Lease | None, customer_id: str, wish: Networking) -> Lease:
        ranges = self.ranges
        network = ipv4 = None
        if wish.prefix == _HALF:
            network = self._free(
                "network", ranges.networks, "/64 networks", _numbers_of_networks(self, ranges)
            )
        if wish.ipv4:
            ipv4 = self._free(
                "ipv4", ranges.ipv4_addresses, "IPv4 addresses", _numbers_of_ipv4(self, ranges)
            )
        slot = held.slot if held else self._slot()
        own = ranges.shared.network_address + int(interface_id(mac_of(slot)))
        return Lease(
            slot=slot,
            tenant=self._tenants.get(customer_id) or self._numbers.take("tenant"),
            prefix=str(IPv6Network(own) if network is None else ranges.network(network)),
            ipv4="" if ipv4 is None else str(ranges.ipv4_address(ipv4)),
        )

    def _slot(self) -> int:
        taken = {lease.slot for lease in self._held.values()}
        while (slot := 1 + self._numbers.take("slot") % SLOTS) in taken:
            pass
        return slot

    def _free(self, kind: str, size: int, what: str, taken: Iterable[int]) -> int:
        """A number from 0 to `size` - 1 that nobody has; of the free ones the longest unused."""
        held = set(taken)
        if len(held) >= size:
            total = f"all {size} are taken" if size else "it has none to give"
            raise RefusedError(ErrorCode.NO_CAPACITY, f"the host has no {what} left: {total}")
        while (number := self._numbers.take(kind) % size) in held:
            pass
        return number

    def _fits(self, lease: Lease, wish: Networking) -> bool:
        prefix = IPv6Network(lease.prefix)
        whole = wish.prefix == _HALF
        within = prefix.subnet_of(self.ranges.prefix if whole else self.ranges.shared)
        if not within or (prefix.prefixlen == _HALF) != whole:
            return False
        if not wish.ipv4:
            return not lease.ipv4
        address = IPv4Address(lease.ipv4 or 0)
        return any(address in network for network in self.ranges.ipv4)


def _numbers_of_networks(leases: Leases, ranges: Ranges) -> Iterable[int]:
    base = int(ranges.prefix.network_address)
    for lease in leases.held.values():
        prefix = IPv6Network(lease.prefix)
        if prefix.prefixlen == _HALF and prefix.subnet_of(ranges.prefix):
            yield ((int(prefix.network_address) - base) >> _HALF) - 1


def _numbers_of_ipv4(leases: Leases, ranges: Ranges) -> Iterable[int]:
    for lease in leases.held.values():
        before = 0
        for network in ranges.ipv4 if lease.ipv4 else ():
            address = IPv4Address(lease.ipv4)
            if address in network:
                yield before + int(address) - int(network.network_address)
            before += network.num_addresses
