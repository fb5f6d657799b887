"""From a VM's record to its connection, and the watch over all of them.

What a VM asked for stands in its spec, what it holds in its lease, and what the operator wants of
it and whom its customer agrees with on the bus; together they are its attachment. All attachments
are compared with what stands in the kernel at the start and every minute.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Network
from uuid import UUID

import structlog

from runtime.clock import Clock
from schemas.errors import ErrorCode
from schemas.networking import Inbound, Networking, port_range
from schemas.units import NS_PER_S
from schemas.vms import VmSpec, VmState
from vm_agent.agreements import Agreements
from vm_agent.dropping import Dropping
from vm_agent.fleet import Fleet, Vm
from vm_agent.network.attachment import Attachment, Port
from vm_agent.network.lease import Lease
from vm_agent.network.taps import NetworkError
from vm_agent.ports import Host
from vm_agent.states import RefusedError
from vm_agent.store import Record
from vm_agent.telemetry import Telemetry

_log = structlog.get_logger("decisec.network")

COMPARE_S = 60
COUNT_S = 10
_LOOK_NS = NS_PER_S // 2
"""How often it is looked whether the operator wants something else."""


class Connecting:
    """Connects VMs.

    Args:
        host: The host.
        agreements: Which customers agree.
    """

    def __init__(self, host: Host, agreements: Agreements) -> None:
        self._host = host
        self._agreements = agreements
        self._renewing = asyncio.Lock()

    async def open(self, records: Iterable[Record]) -> None:
        """Take over what is connected. Before anything is made of the records."""
        networks = self._host.networks
        records = tuple(records)
        for record in records:
            if record.lease is not None and record.state is not VmState.DELETED:
                networks.restore(record.vm_id, record.customer_id, record.lease)
        found = map(self.attachment, records)
        await networks.open(vm for vm in found if vm is not None)
        if networks.missing:
            _log.error("network.not_connected", reason=networks.missing)

    async def lease(self, vm_id: UUID, customer_id: str, spec: VmSpec) -> Lease | None:
        """What a VM of this spec holds or gets; None for one that is not connected.

        Raises:
            RefusedError: With `no_capacity`: the host cannot give what it asks for.
        """
        networks = self._host.networks
        if not spec.network:
            return None
        if not networks.connects and spec.networking != Networking():
            raise RefusedError(
                ErrorCode.NO_CAPACITY,
                "the host connects no VMs, and this one says in `networking` how it is to be",
            )
        return await networks.lease(vm_id, customer_id, spec.networking)

    def attachment(self, record: Record) -> Attachment | None:
        """How a VM's current incarnation is connected; None if it is not."""
        nic, lease, wish = record.nic, record.lease, record.spec.networking
        if nic is None or lease is None or not nic.fabric:
            return None
        tenants = self._host.networks.tenants
        peers = self._agreements.of(record.customer_id)
        return Attachment(
            slot=lease.slot,
            vm_id=record.vm_id,
            customer_id=record.customer_id,
            tenant=lease.tenant,
            mac=nic.mac,
            addresses=(IPv6Network(lease.prefix),),
            ipv4=IPv4Address(lease.ipv4) if lease.ipv4 else None,
            open_inbound=wish.inbound is Inbound.OPEN,
            ports=tuple(map(_port, wish.ports)),
            peers=frozenset(tenants[peer] for peer in peers if peer in tenants),
            quarantined=record.quarantined,
            incarnation=record.incarnation,
            mtu=wish.mtu,
            rx_bytes_per_s=nic.limits.net_rx_bytes_per_s,
            tx_bytes_per_s=nic.limits.net_tx_bytes_per_s,
        )

    async def attach(self, vm: Vm) -> None:
        """Connect a VM whose VMM is there and whose guest does not run yet.

        Raises:
            NetworkError: The kernel refuses.
        """
        attachment = self.attachment(vm.record)
        if attachment is None or vm.record.nic is None:
            return
        await self._host.networks.attach(vm.record.nic, attachment)
        # The operator, or a peer, may have said something meanwhile.
        await self.renew(vm)

    async def renew(self, vm: Vm) -> None:
        """Let the rules hold that a VM's record asks for now; nothing happens if they do.

        Raises:
            NetworkError: The kernel refuses.
        """
        async with self._renewing:
            # In turn: what is older must not be put in force last.
            attachment = self.attachment(vm.record)
            if attachment is not None:
                await self._host.networks.change(attachment)


def _port(text: str) -> Port:
    protocol, first, last = port_range(text)
    return Port(protocol=protocol, first=first, last=last)


class Watch:
    """Keeps what stands as it should be, and follows the operator's word.

    Args:
        host: The host.
        fleet: Its VMs.
        connecting: How each is to be connected.
        quarantined: VMs that the operator wants cut off; None while that is not known.
        clock: Monotonic time.
        telemetry: Counts repairs.
    """

    def __init__(
        self,
        host: Host,
        fleet: Fleet,
        connecting: Connecting,
        quarantined: Callable[[], frozenset[UUID] | None],
        clock: Clock,
        telemetry: Telemetry,
    ) -> None:
        self._host = host
        self._fleet = fleet
        self._connecting = connecting
        self._quarantined = quarantined
        self._clock = clock
        self._telemetry = telemetry
        self._dropping = Dropping(fleet, telemetry)
        self._owed: set[UUID] = set()
        self._uncounted = False

    async def run(self) -> None:
        """Compare each minute, count drops and follow orders in between, until cancelled."""
        compare_ns = self._clock.monotonic_ns() + COMPARE_S * NS_PER_S
        count_ns = 0
        while True:
            await self.follow()
            now_ns = self._clock.monotonic_ns()
            if now_ns >= count_ns:
                await self.count()
                count_ns = now_ns + COUNT_S * NS_PER_S
            if now_ns >= compare_ns:
                await self.compare()
                compare_ns = now_ns + COMPARE_S * NS_PER_S
            await self._clock.sleep_until(now_ns + _LOOK_NS)

    async def count(self) -> None:
        """Count what was dropped since the last time."""
        if not self._host.networks.connects:
            return
        try:
            drops = await self._host.networks.drops()
        except NetworkError as error:
            self._telemetry.network_comparisons_failed.add(1)
            if not self._uncounted:
                _log.error("network.not_counted", error=str(error))
            self._uncounted = True
            return
        self._uncounted = False
        await self._dropping.take(drops, self._clock.monotonic_ns())

    async def compare(self) -> None:
        """Compare once. What cannot be repaired now is tried again the next time."""
        if not self._host.networks.connects:
            return
        began_ns = self._clock.monotonic_ns()
        try:
            repairs = await self._host.networks.reconcile()
        except NetworkError as error:
            self._telemetry.network_comparisons_failed.add(1)
            _log.error("network.not_compared", error=str(error))
            return
        took_s = (self._clock.monotonic_ns() - began_ns) / NS_PER_S
        self._telemetry.network_comparison.record(took_s)
        for kind, count in repairs.kinds.items():
            self._telemetry.network_repairs.add(count, {"kind": kind})
        if repairs.kinds:
            _log.warning("network.repaired", **repairs.kinds)
        if repairs.lost:
            self._telemetry.network_taps_lost.add(len(repairs.lost))
            _log.error("network.taps_lost", taps=sorted(repairs.lost))

    async def follow(self) -> None:
        """Cut off whom the operator wants cut off, and nobody else.

        It stands in the record first: the next agent need not hear of it again to keep to it.
        """
        ordered = self._quarantined()
        if ordered is None:
            return
        for vm in self._fleet.vms:
            wanted = vm.vm_id in ordered
            if vm.record.quarantined != wanted:
                vm.stage(quarantined=wanted)
                vm.report_status()
                await self._fleet.commit(vm)
                _log.warning("vm.quarantined" if wanted else "vm.released", vm_id=str(vm.vm_id))
                self._owed.add(vm.vm_id)
            if vm.vm_id in self._owed:
                await self._renew(vm)

    async def _renew(self, vm: Vm) -> None:
        try:
            await self._connecting.renew(vm)
        except NetworkError as error:
            _log.error("network.not_changed", vm_id=str(vm.vm_id), error=str(error))
        else:
            self._owed.discard(vm.vm_id)
