"""Hosts as their operator sees them: what their agents say, what is ordered, and ordering it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from enum import StrEnum
from typing import TypeVar
from uuid import UUID

import msgspec

from runtime.audit import audited
from runtime.buckets import Bucket, RevisionConflictError
from runtime.bus import Bus
from runtime.clock import utc_now
from runtime.errors import TransientError
from runtime.transit import on_its_way
from schemas.errors import InvalidIdError
from schemas.hosts import (
    HEARTBEAT_FRESH,
    HostInfo,
    HostLoss,
    HostOrders,
    decode_host_info,
    decode_host_loss,
    decode_host_orders,
)
from schemas.ids import new_id
from schemas.subjects import (
    HOST_ORDERS,
    HOSTS,
    LOST_HOSTS,
    VM_SPECS,
    VM_STATUS,
    parse_status_key,
    vm_key,
)
from schemas.vms import VmState, VmStatus, decode_vm_record, decode_vm_status

_T = TypeVar("_T", bound=msgspec.Struct)

Audit = Callable[[str, HostLoss, str, str], AbstractAsyncContextManager[object]]
"""Tells of what its block does: the action, what is or was declared, who, and why."""

_ANSWER_WITHIN_S = 10.0
_LOOK_EVERY_S = 0.25


class Condition(StrEnum):
    """What can be expected of a host."""

    UP = "up"
    DRAINING = "draining"
    EMPTY = "empty"
    SILENT = "silent"
    NOT_HEARD = "not heard"


class HostView(msgspec.Struct, frozen=True, kw_only=True):
    """A host at one instant.

    Attributes:
        age_s: Of the heartbeat.
        info: The last heartbeat; None once it has expired, some 30 s after it was written.
        order: What the operator has ordered.
    """

    host_id: str
    state: Condition
    age_s: float | None = None
    info: HostInfo | None = None
    order: HostOrders | None = None

    @property
    def known(self) -> bool:
        """Whether there is such a host: it is heard of, or ordered to drain.

        An order to take VMs is no more than what every host does, so it is no sign of one.
        """
        return self.info is not None or (self.order is not None and self.order.draining)

    @property
    def empty(self) -> bool:
        """Whether it takes no new VM and has none left."""
        return self.state is Condition.EMPTY

    @property
    def heard(self) -> bool:
        """Whether the heartbeat can be believed."""
        return self.state in (Condition.UP, Condition.DRAINING, Condition.EMPTY)

    def takes_back(self, order: HostOrders) -> bool:
        """Whether a later order says the opposite."""
        now = self.order
        return (
            now is not None
            and now.draining is not order.draining
            and now.ordered_at > order.ordered_at
        )

    def obeys(self, order: HostOrders) -> bool:
        """Whether the host's agent acts as ordered."""
        return self.heard and self.info is not None and self.info.draining is order.draining


def view(host_id: str, info: HostInfo | None, order: HostOrders | None, now: datetime) -> HostView:
    """What heartbeat and order say of a host, taken together."""
    if info is None:
        return HostView(host_id=host_id, state=Condition.NOT_HEARD, order=order)
    age = now - info.heartbeat_at
    if age > HEARTBEAT_FRESH:
        state = Condition.SILENT
    elif info.drained:
        state = Condition.EMPTY
    else:
        state = Condition.DRAINING if info.draining else Condition.UP
    age_s = max(0.0, round(age.total_seconds(), 1))
    return HostView(host_id=host_id, state=state, age_s=age_s, info=info, order=order)


class Hosts:
    """Reads heartbeats, writes orders, declares hosts lost.

    Every call raises TransientError when NATS or a bucket cannot be reached.

    Args:
        bus: The connection.
        audit: Tells of declarations; into the audit stream by default.
    """

    def __init__(self, bus: Bus, audit: Audit | None = None) -> None:
        self._bus = bus
        self._audit = audit or self._audited
        self._heartbeats = Bucket(bus, HOSTS, decode_host_info)
        self._orders = Bucket(bus, HOST_ORDERS, decode_host_orders)
        self._statuses = Bucket(bus, VM_STATUS, decode_vm_status)
        self._records = Bucket(bus, VM_SPECS, decode_vm_record)
        self._losses = Bucket(bus, LOST_HOSTS, decode_host_loss)

    async def all(self) -> list[HostView]:
        """Every host that is known, by name."""
        infos = await _all(self._heartbeats)
        orders = await _all(self._orders)
        now = utc_now()
        seen = [
            view(host_id, infos.get(host_id), orders.get(host_id), now)
            for host_id in sorted(infos.keys() | orders.keys())
        ]
        return [host for host in seen if host.known]

    async def get(self, host_id: str) -> HostView:
        """One host; it is not `known` if there is none of that name."""
        info = await self._heartbeats.get(host_id)
        order = await self._orders.get(host_id)
        return view(
            host_id, info.value if info else None, order.value if order else None, utc_now()
        )

    async def vms(self, host_id: str) -> list[VmStatus]:
        """The VMs that are on a host, of all customers."""
        statuses = await _all(self._statuses)
        # Whose word it is says the key.
        here = [s for key, s in statuses.items() if s.host_id == host_id == _writer_of(key, s)]
        return sorted(
            (s for s in here if s.state is not VmState.DELETED),
            key=lambda s: (s.customer_id, s.vm_id),
        )

    async def order(
        self, host_id: str, *, draining: bool, reason: str, requested_by: str
    ) -> tuple[HostOrders, bool]:
        """See to it that the order stands; its agent need not run.

        Returns:
            The order that stands now, and whether it is a new one. To order again what stands
            changes nothing; an empty reason leaves the one that was given before.
        """
        while True:
            mark = await self._orders.mark(host_id)
            stands = mark.value
            if stands and stands.draining is draining and reason in ("", stands.reason):
                return stands, False
            order = HostOrders(
                host_id=host_id,
                draining=draining,
                reason=reason,
                requested_by=requested_by,
                ordered_at=utc_now(),
                quarantined=stands.quarantined if stands else (),
            )
            try:
                await self._orders.update(host_id, order, mark.revision)
            except RevisionConflictError:
                continue  # somebody else has ordered something: it is looked at first
            return order, True

    async def find(self, vm_id: UUID) -> VmStatus | None:
        """A VM of any customer, by the word of the host that its record names; None without it."""
        for key, status in (await _all(self._statuses)).items():
            if status.vm_id != vm_id or status.host_id != _writer_of(key, status):
                continue
            record = await self._records.get(vm_key(status.customer_id, vm_id))
            placed = record is not None and record.value.host_id == status.host_id
            if placed and status.state is not VmState.DELETED:
                return status
        return None

    async def quarantine(
        self, status: VmStatus, *, cut_off: bool, reason: str, requested_by: str
    ) -> bool:
        """Have a VM cut off from the network, or let it back; its agent need not run. Audited.

        Returns:
            Whether it is a change of what is ordered.

        Raises:
            TransientError: Somebody else ordered something at the same moment, too.
        """
        host_id = status.host_id
        mark = await self._orders.mark(host_id)
        stands = mark.value
        if stands is None:
            # An order says both; that the host drains by its settings must not end by this one.
            info = await self._heartbeats.get(host_id)
            stands = HostOrders(
                host_id=host_id,
                draining=info is not None and info.value.draining,
                requested_by=requested_by,
                ordered_at=utc_now(),
            )
        if (status.vm_id in stands.quarantined) is cut_off:
            return False
        others = tuple(vm_id for vm_id in stands.quarantined if vm_id != status.vm_id)
        wanted = (*others, status.vm_id) if cut_off else others
        async with audited(
            self._bus,
            act_id=new_id(),
            actor=requested_by,
            action="vm-quarantine" if cut_off else "vm-release",
            target=str(status.vm_id),
            reason=reason,
            details={"host_id": host_id, "customer_id": status.customer_id},
        ):
            order = msgspec.structs.replace(stands, quarantined=wanted)
            try:
                await self._orders.update(host_id, order, mark.revision)
            except RevisionConflictError as error:
                raise TransientError(f"{error}; try again") from error
        return True

    async def until_cut_off(self, vm_id: UUID, *, cut_off: bool, within_s: float) -> bool:
        """Wait until a VM's agent says that it is cut off, or that it is not."""
        try:
            async with asyncio.timeout(within_s):
                while True:
                    status = await self.find(vm_id)
                    if status is not None and status.quarantined is cut_off:
                        return True
                    await asyncio.sleep(_LOOK_EVERY_S)
        except TimeoutError:
            return False

    async def loss(self, host_id: str) -> HostLoss | None:
        """What is declared of a host; None if it is not lost."""
        entry = await self._losses.get(host_id)
        return entry.value if entry else None

    async def losses(self) -> list[HostLoss]:
        """The hosts that are lost, by name."""
        found = await _all(self._losses)
        return [found[host_id] for host_id in sorted(found)]

    async def declare_lost(self, host_id: str, *, reason: str, requested_by: str) -> HostLoss:
        """Let usage answers no longer wait for a host. Audited.

        The first declaration stands, but an operator's takes the place of a collector's, of the
        same time: it does not end by itself.

        Raises:
            TransientError: Somebody else said otherwise at the same moment, too.
        """
        mark = await self._losses.mark(host_id)
        stands = mark.value
        if stands is not None and not stands.automatic:
            return stands
        loss = HostLoss(
            host_id=host_id,
            reason=reason,
            requested_by=requested_by,
            declared_at=stands.declared_at if stands is not None else utc_now(),
        )
        async with self._audit("host-lost", loss, requested_by, reason):
            try:
                await self._losses.update(host_id, loss, mark.revision)
            except RevisionConflictError as error:
                raise TransientError(f"{error}; look at it again") from error
        return loss

    async def on_its_way(self, host_id: str) -> list[str]:
        """Consumers that may have frames of a host before them; empty if all is in the store."""
        return await on_its_way(self._bus, host_id)

    async def declare_found(self, host_id: str, *, reason: str, requested_by: str) -> bool:
        """Let usage answers wait for a host again; false if it was not lost. Audited."""
        lost = await self._losses.get(host_id)
        if lost is None:
            return False
        async with self._audit("host-found", lost.value, requested_by, reason):
            try:
                await self._losses.delete(host_id, lost.revision)
            except RevisionConflictError as error:
                raise TransientError(f"{error}; look at it again") from error
        return True

    def _audited(
        self, action: str, loss: HostLoss, actor: str, reason: str
    ) -> AbstractAsyncContextManager[dict[str, str]]:
        return audited(
            self._bus,
            act_id=new_id(),
            actor=actor,
            action=action,
            target=loss.host_id,
            reason=reason,
            details={"lost_at": loss.declared_at.isoformat()},
        )

    async def until(
        self,
        host_id: str,
        condition: Callable[[HostView], bool],
        *,
        within_s: float | None,
        tell: Callable[[HostView | None], None] = lambda _: None,
    ) -> HostView | None:
        """Look at a host several times a second until it meets a condition.

        Args:
            host_id: Which.
            condition: What is waited for.
            within_s: None for as long as it takes.
            tell: Called with each look; with None while NATS does not answer.

        Returns:
            The host as it met the condition; None if it did not in time.
        """
        try:
            async with asyncio.timeout(within_s):
                while True:
                    try:
                        seen = await self.get(host_id)
                    except TransientError:
                        tell(None)
                    else:
                        tell(seen)
                        if condition(seen):
                            return seen
                    await asyncio.sleep(_LOOK_EVERY_S)
        except TimeoutError:
            return None


def _writer_of(key: str, status: VmStatus) -> str:
    try:
        return parse_status_key(key)[0] or status.host_id
    except InvalidIdError:
        return ""


async def _all(bucket: Bucket[_T]) -> dict[str, _T]:
    # Asked for first, since reading all of a bucket waits for one that is not there.
    await bucket.last_revision()
    try:
        async with asyncio.timeout(_ANSWER_WITHIN_S):
            return await bucket.all()
    except TimeoutError as error:
        raise TransientError(f"{bucket.name} could not be read in time") from error
