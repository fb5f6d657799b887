"""`Networks` of a real host: a tap for each incarnation, and the fabric that connects it.

Without a fabric a tap stays in its own namespace and leads nowhere. Where there should be one and
something is missing, no VM is connected, and it is said why: rather no network than an open one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from uuid import UUID

import structlog

from schemas.networking import Networking
from vm_agent.drivers.abc import Nic
from vm_agent.network import taps
from vm_agent.network.attachment import Attachment, index_of
from vm_agent.network.fabric import Fabric
from vm_agent.network.layout import Owner
from vm_agent.network.lease import Lease
from vm_agent.network.leases import Leases
from vm_agent.network.mending import Repairs
from vm_agent.network.path_check import Facts
from vm_agent.network.taps import NetworkError, TapCounters

_log = structlog.get_logger("decisec.network")


class Connections:
    """Interfaces of VMs, and what connects them.

    Args:
        fabric: Where taps go; None where they stay.
        leases: Addresses to give out; None where VMs are not connected any more, or never were.
        missing: Why VMs are not connected although they should be.

    Attributes:
        unavailable: Why VMs get no interface at all; None where they do.
        missing: Why VMs are not connected although they should be; empty where nothing is amiss.
    """

    def __init__(
        self, fabric: Fabric | None = None, leases: Leases | None = None, missing: str = ""
    ) -> None:
        self.unavailable = taps.available()
        self.missing = missing
        self._fabric = fabric
        self._leases = leases
        self._connects = False

    @property
    def connects(self) -> bool:
        """Whether VMs that start now are connected."""
        return self._connects

    @property
    def names(self) -> tuple[str, ...]:
        """What addresses are from; empty where VMs are not connected."""
        return self._leases.ranges.names() if self._leases is not None and self.connects else ()

    @property
    def tenants(self) -> Mapping[str, int]:
        """Numbers of the customers that have a VM here."""
        return self._leases.tenants if self._leases is not None else {}

    async def open(self, vms: Iterable[Attachment]) -> None:
        """Make the fabric, and take over those VMs whose taps are in it."""
        fabric = self._fabric
        if fabric is None:
            return
        vms = tuple(vms)
        if self._leases is not None and not self.missing:
            try:
                await fabric.open(vms)
            except NetworkError as error:
                self.missing = str(error)
            else:
                self._connects = True
                return
        # What is connected stays so, and is counted.
        with suppress(NetworkError):
            await fabric.look(vms)

    async def close(self) -> None:
        """Let go of it all; it works on."""
        self._connects = False
        if self._fabric is not None:
            await self._fabric.close()

    async def lease(self, vm_id: UUID, customer_id: str, wish: Networking) -> Lease | None:
        """A VM's slot and addresses, given to it if need be; None where VMs are not connected.

        Raises:
            RefusedError: With `no_capacity`: there is none left of what it wants.
        """
        if self._leases is None or not self.connects:
            return None
        return await self._leases.take(vm_id, customer_id, wish)

    def restore(self, vm_id: UUID, customer_id: str, lease: Lease) -> None:
        """Hold what a VM has already."""
        if self._leases is not None:
            self._leases.restore(vm_id, customer_id, lease)

    def release(self, vm_id: UUID) -> None:
        """Give back what a VM has; nothing happens if it has nothing."""
        if self._leases is not None:
            self._leases.release(vm_id)

    def nic_of(self, vm_id: UUID, incarnation: int, lease: Lease | None) -> Nic | None:
        """The names of an interface; None where VMs get none."""
        if self.unavailable:
            return None
        nic = taps.nic_of(vm_id, incarnation)
        if lease is None or not self.connects:
            return nic
        return replace(nic, mac=lease.mac, fabric=lease.tap)

    async def create(self, nic: Nic, owner: int | None = None) -> None:
        """Make the interface, connected to nothing yet; none where there can be none."""
        if not self.unavailable:
            await taps.create(nic, owner)

    async def attach(self, nic: Nic, vm: Attachment) -> None:
        """Connect an interface that its VMM has opened.

        Raises:
            NetworkError: The kernel refuses; nothing gets through.
        """
        if self._fabric is None or not self.connects:
            raise NetworkError(f"VMs are not connected here: {self.missing}")
        await self._fabric.attach(nic, vm)

    async def change(self, vm: Attachment) -> None:
        """Let other rules hold for a VM; nothing happens if it is not connected."""
        if self._fabric is not None and self.connects:
            await self._fabric.change(vm)

    async def destroy(self, nic: Nic) -> None:
        """Remove the interface wherever it is; nothing happens if it is gone."""
        if nic.fabric and self._fabric is not None:
            vm_id, incarnation = taps.owner_of(nic)
            identity = self._fabric.layout.identity
            await self._fabric.detach(nic.fabric, Owner(identity, vm_id, incarnation))
        await taps.destroy(nic)

    async def counters(self, nic: Nic) -> TapCounters | FabricCounters | None:
        """Byte counters of an interface, wherever it is; None if there is no such interface."""
        own: TapCounters | None = None
        with suppress(NetworkError):
            own = await TapCounters.open(nic)
        if nic.fabric and self._fabric is not None:
            return FabricCounters(self._fabric, index_of(nic.fabric), own)
        return own

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Read the bytes of all connected VMs now, for everybody who asks within the block."""
        if self._fabric is None:
            yield
            return
        with self._fabric.at_once():
            yield

    async def reconcile(self) -> Repairs:
        """Compare what stands with what should, and put it right.

        Raises:
            NetworkError: The kernel refuses.
        """
        if self._fabric is None or not self.connects:
            return Repairs({})
        return await self._fabric.reconcile()

    async def drops(self) -> Mapping[str, Mapping[str, int]]:
        """Packets that were dropped so far, by tap and reason.

        Raises:
            NetworkError: The kernel refuses.
        """
        if self._fabric is None or not self.connects:
            return {}
        return await self._fabric.drops()

    async def examine(self, tap: str) -> Facts:
        """Look at the path of one VM, with probes to its own addresses.

        Raises:
            NetworkError: It is not connected, or the kernel refuses.
        """
        if self._fabric is None or not self.connects:
            raise NetworkError(f"VMs are not connected here: {self.missing}")
        return await self._fabric.examine(tap)


class FabricCounters:
    """Byte counters of a tap that goes into the fabric: there, or where it still is.

    Args:
        fabric: Where it goes.
        index: Its interface's index in there.
        own: Where it comes from.
    """

    def __init__(self, fabric: Fabric, index: int, own: TapCounters | None) -> None:
        self._fabric = fabric
        self._index = index
        self._own = own

    def read(self) -> tuple[int, int]:
        """Bytes the guest has (received, sent) since the tap was made, Ethernet headers included.

        Raises:
            NetworkError: The tap is gone, or on its way.
        """
        try:
            found = self._fabric.read(self._index)
        except OSError as error:
            raise NetworkError(f"cannot read tap counters: {error}") from error
        if found is not None:
            return found
        if self._own is None:
            raise NetworkError("the tap is gone")
        return self._own.read()

    def close(self) -> None:
        """Let go of it; may be called twice."""
        if self._own is not None:
            self._own.close()
