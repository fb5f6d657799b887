"""Hosts as their operator sees them over HTTP: looked at, drained, declared lost and found.

The gateway writes what an operator wants, on the operator's behalf and by the code that
`decisec host` goes by. It never writes to these buckets of its own accord.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from gateway import acts
from gateway.auth import Principal, Scope
from gateway.cursors import Position, digest, name_only, seal, unseal
from gateway.errors import RefusedError
from gateway.fleet import Fleet
from gateway.vm_views import view as vm_view
from runtime import hosts as seen
from runtime.buckets import Bucket, Mirror
from runtime.bus import Bus
from runtime.clock import utc_now
from schemas.admin_hosts import (
    Heartbeat,
    HostList,
    HostState,
    HostView,
    HostVm,
    HostVmList,
)
from schemas.errors import ErrorCode
from schemas.hosts import (
    HostInfo,
    HostLoss,
    HostOrders,
    Resources,
    decode_host_loss,
    decode_host_orders,
)
from schemas.subjects import HOST_ORDERS, LOST_HOSTS, vm_key
from schemas.vms import VmState

_STATES = {
    seen.Condition.UP: HostState.UP,
    seen.Condition.DRAINING: HostState.DRAINING,
    seen.Condition.EMPTY: HostState.EMPTY,
    seen.Condition.SILENT: HostState.SILENT,
    seen.Condition.NOT_HEARD: HostState.NOT_HEARD,
}
_NOTHING = Resources()


@dataclass(frozen=True, slots=True)
class HostQuery:
    """Which hosts. What is empty is not asked for."""

    state: HostState | None = None
    pool: str = ""

    def wants(self, host: HostView) -> bool:
        """Whether this is one of those."""
        pool = host.heartbeat.pool if host.heartbeat is not None else ""
        return self.state in (None, host.state) and self.pool in ("", pool)


class HostService:
    """Every question and every order, for principals with `Scope.ADMIN`.

    Each method raises RefusedError for what it will not do, and TransientError when the bus
    cannot be reached. There is a host if one is heard of, ordered to drain, declared lost, or
    named by a VM's record.

    Args:
        bus: The connection.
        fleet: Heartbeats and records.
    """

    def __init__(self, bus: Bus, fleet: Fleet) -> None:
        self._fleet = fleet
        self._desk = seen.Hosts(bus, _told)
        self._orders = Mirror(Bucket(bus, HOST_ORDERS, decode_host_orders))
        self._losses = Mirror(Bucket(bus, LOST_HOSTS, decode_host_loss))

    async def run(self) -> None:
        """Follow orders and losses until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._orders.run(), name="mirror-host-orders")
            group.create_task(self._losses.run(), name="mirror-lost-hosts")

    async def synced(self) -> None:
        """Return once everything that stood at the start is there."""
        await self._orders.synced()
        await self._losses.synced()

    def page(self, principal: Principal, query: HostQuery, *, cursor: str, limit: int) -> HostList:
        """Hosts by name.

        Raises:
            RefusedError: BAD_REQUEST for a wrong cursor.
        """
        principal.require(Scope.ADMIN)
        sealed_with = digest("hosts", query.state, query.pool)
        begin = unseal(sealed_with, cursor)
        last = begin.name if begin else ""
        found: list[HostView] = []
        for host_id in sorted(name for name in self._names() if name > last):
            host = self._view(
                host_id,
                self._fleet.hosts.get(host_id),
                self._orders.values.get(host_id),
                self._losses.values.get(host_id),
            )
            if host is None or not query.wants(host):
                continue
            if len(found) == limit:
                next_cursor = seal(sealed_with, name_only(found[-1].host_id))
                return HostList(hosts=tuple(found), next_cursor=next_cursor)
            found.append(host)
        return HostList(hosts=tuple(found))

    async def get(self, principal: Principal, host_id: str) -> HostView:
        """One host as it stands on the server."""
        principal.require(Scope.ADMIN)
        host, loss = await asyncio.gather(self._desk.get(host_id), self._desk.loss(host_id))
        found = self._view(host_id, host.info, host.order, loss)
        if found is None:
            raise no_such_host()
        return found

    def vms(self, principal: Principal, host_id: str, *, cursor: str, limit: int) -> HostVmList:
        """The VMs whose records name a host: by customer, a customer's in the order of making.

        Raises:
            RefusedError: BAD_REQUEST for a wrong cursor.
        """
        principal.require(Scope.ADMIN)
        sealed_with = digest("host-vms", host_id)
        begin = unseal(sealed_with, cursor)
        last = f"{begin.name}.{begin.item_id}" if begin else ""
        keys = self._fleet.on_host.after(host_id, last, limit + 1)
        found = [vm for key in keys[:limit] if (vm := self._vm(key)) is not None]
        more = len(keys) > limit
        place = Position.of_key(keys[limit - 1]) if more else None
        return HostVmList(
            vms=tuple(found), next_cursor=seal(sealed_with, place) if place is not None else ""
        )

    async def drain(
        self, principal: Principal, host_id: str, *, draining: bool, reason: str, force: bool
    ) -> HostView:
        """Order a host to take no new VM, or to take VMs again; its agent obeys as it hears of it.

        To order again what stands changes nothing.

        Raises:
            RefusedError: NOT_FOUND for a host that nothing is known of, without `force`.
        """
        principal.require(Scope.ADMIN)
        before = await self._desk.get(host_id)
        repeated = before.order is not None and before.order.draining is draining
        if not (before.known or repeated or force or self._fleet.on_host.count(host_id)):
            raise no_such_host()
        await acts.commit(target=f"host {host_id}", reason=reason)
        order, _ = await self._desk.order(
            host_id, draining=draining, reason=reason, requested_by=principal.subject
        )
        loss = await self._desk.loss(host_id)
        return self._shown(host_id, before.info, order, loss)

    async def declare_lost(
        self, principal: Principal, host_id: str, *, reason: str, force: bool
    ) -> HostView:
        """Let usage answers no longer wait for a host; what was declared before stands.

        Raises:
            RefusedError: CONFLICT without `force`: the host is heard of, or frames of it are on
                their way to the store.
        """
        principal.require(Scope.ADMIN)
        host = await self._desk.get(host_id)
        if host.heard and not force:
            raise RefusedError(
                ErrorCode.CONFLICT,
                f"{host_id} is heard of: its frames will come. `force` declares it lost anyway.",
            )
        if not force and (behind := await self._desk.on_its_way(host_id)):
            raise RefusedError(
                ErrorCode.CONFLICT,
                f"Frames of {host_id} are on their way to the store ({', '.join(behind)}), and "
                "usage answers would pass them. Wait, or give `force`.",
            )
        loss = await self._desk.declare_lost(host_id, reason=reason, requested_by=principal.subject)
        return self._shown(host_id, host.info, host.order, loss)

    async def declare_found(self, principal: Principal, host_id: str, *, reason: str) -> HostView:
        """Let usage answers wait for a host again; nothing happens if it was not lost.

        Raises:
            RefusedError: NOT_FOUND for a host that nothing is known of.
        """
        principal.require(Scope.ADMIN)
        host = await self._desk.get(host_id)
        changed = await self._desk.declare_found(
            host_id, reason=reason, requested_by=principal.subject
        )
        if not (changed or host.known or self._fleet.on_host.count(host_id)):
            raise no_such_host()
        return self._shown(host_id, host.info, host.order, None)

    def _names(self) -> set[str]:
        return {
            *self._fleet.hosts, *self._orders.values, *self._losses.values, *self._fleet.on_host,
        }  # fmt: skip

    def _view(
        self,
        host_id: str,
        info: HostInfo | None,
        order: HostOrders | None,
        loss: HostLoss | None,
    ) -> HostView | None:
        shown = self._shown(host_id, info, order, loss)
        drains = order is not None and order.draining
        # An order to take VMs is no more than what every host does, so it is no sign of one.
        return shown if info or drains or loss or shown.vms else None

    def _shown(
        self,
        host_id: str,
        info: HostInfo | None,
        order: HostOrders | None,
        loss: HostLoss | None,
    ) -> HostView:
        host = seen.view(host_id, info, order, utc_now())
        return HostView(
            host_id=host_id,
            state=_STATES[host.state],
            age_s=host.age_s,
            vms=self._fleet.on_host.count(host_id),
            placing=self._fleet.inventory.taken(host_id) or _NOTHING,
            order=order,
            loss=loss,
            heartbeat=_heartbeat(info) if info is not None else None,
        )

    def _vm(self, key: str) -> HostVm | None:
        record = self._fleet.record(key)
        if record is None:
            return None
        status = self._fleet.status(vm_key(record.customer_id, record.vm_id))
        found = vm_view(record, status)
        if found.state is VmState.DELETED:
            return None
        spec = record.spec
        return HostVm(
            vm_id=record.vm_id,
            customer_id=record.customer_id,
            name=record.name,
            state=found.state,
            vcpus=spec.vcpus,
            memory_mib=spec.memory_mib,
            disk_mib=spec.disk_mib,
            created_at=record.created_at,
        )


def _heartbeat(info: HostInfo) -> Heartbeat:
    given = {name: getattr(info, name) for name in Heartbeat.__struct_fields__ if name != "at"}
    return Heartbeat(at=info.heartbeat_at, **given)


def no_such_host() -> RefusedError:
    """A host that nothing is known of."""
    return RefusedError(ErrorCode.NOT_FOUND, "There is no such host.")


@asynccontextmanager
async def _told(action: str, loss: HostLoss, actor: str, reason: str) -> AsyncIterator[None]:
    """The door has told of the request, or is told now; it tells of the end, too."""
    del action, actor
    await acts.commit(target=f"host {loss.host_id}", reason=reason)
    yield
