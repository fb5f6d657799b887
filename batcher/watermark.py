"""`complete_until`: the time before which an answer will not change any more.

It is the earliest time to which the hosts have come that can still send rows of the VMs in
question. Those are the hosts that the VMs' records name, former ones included: rows of another host
are rejected, and so are those of a VM without a record. A host whose VMs are all deleted, or have
left it, concerns nobody once it has come past their end there, and no window that begins later.
A host that is declared lost is not waited for.

It is never later than a while ago: a VM that is made now may have ticks from a moment before, by a
clock that is behind, and its host was not asked for until now. Gateways place VMs only on hosts
whose heartbeat, by their own clock, is at most 5 s old; an agent's ticks are at most 10 s behind
that clock, and never go back.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

import msgspec
import structlog

from batcher.corrections import Corrections
from batcher.progress import TABLE
from batcher.store import Store
from runtime.buckets import Bucket, Mirror
from runtime.clock import Clock
from runtime.errors import TransientError
from schemas.codec import decoder
from schemas.errors import InvalidIdError
from schemas.hosts import HostLoss
from schemas.ids import CustomerId, HostId, VmId
from schemas.subjects import parse_vm_key
from schemas.units import NS_PER_MS
from schemas.vms import FormerHost, Timestamp

_log = structlog.get_logger("decisec.watermark")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CATCH_UP_S = 1.0
_QUERY = f"""
SELECT host, max({TABLE}.complete_ms)
FROM {TABLE}
WHERE has({{hosts:Array(String)}}, host)
GROUP BY host
"""  # noqa: S608 - our own table's name only


class Labelled(msgspec.Struct, frozen=True, kw_only=True):
    """What a `VmSpec` says of how its customer sorts the VM."""

    labels: dict[str, str] = msgspec.field(default_factory=dict)


class Placed(msgspec.Struct, frozen=True, kw_only=True):
    """What a `VmRecord` says of the VM's place, and how its customer sorts it."""

    vm_id: VmId
    customer_id: CustomerId
    host_id: HostId
    deleted_at: Timestamp | None = None
    former_hosts: tuple[FormerHost, ...] = ()
    spec: Labelled = Labelled()

    @property
    def ends(self) -> Iterator[tuple[str, Timestamp | None]]:
        """Each host that may have rows of it, and since when there is nothing of it there."""
        yield self.host_id, self.deleted_at
        for former in self.former_hosts:
            yield former.host_id, former.left_at


decode_placed: Callable[[bytes], Placed] = decoder(Placed)


class Placements:
    """Which hosts each customer's VMs are on, fed by a mirror of the bucket `vm_specs`."""

    def __init__(self) -> None:
        self._by_customer: dict[str, dict[UUID, Placed]] = defaultdict(dict)

    def change(self, key: str, placed: Placed | None) -> None:
        """Take over a change of the bucket; None for a key that is gone."""
        try:
            customer_id, vm_id = parse_vm_key(key)
        except InvalidIdError as error:
            _log.error("record.refused", key=key[:120], error=str(error))
            return
        if placed is None:
            self._by_customer[customer_id].pop(vm_id, None)
        else:
            self._by_customer[customer_id][vm_id] = placed

    def of_vm(self, vm_id: UUID) -> Placed | None:
        """A VM's record, whoever its customer is."""
        found = [vms[vm_id] for vms in self._by_customer.values() if vm_id in vms]
        return found[0] if found else None

    def count(self, customer_id: str) -> int:
        """How many VMs of a customer there are records of."""
        return len(self._by_customer.get(customer_id, ()))

    def labels(self, customer_id: str, vm_id: UUID) -> Mapping[str, str]:
        """A VM's labels as they are now; none once its record is gone."""
        placed = self._by_customer.get(customer_id, {}).get(vm_id)
        return placed.spec.labels if placed else {}

    def knows(self, customer_id: str) -> bool:
        """Whether a customer has, or had, a VM."""
        return bool(self._by_customer.get(customer_id))

    def hosts(
        self, customer_id: str, vm_ids: Sequence[UUID], taken_over: Sequence[UUID] = ()
    ) -> dict[str, int | None]:
        """The hosts of some of a customer's VMs, or of all of them.

        Args:
            customer_id: Whose.
            vm_ids: Which; empty for all.
            taken_over: Others' VMs of which rows are this customer's, by a correction.

        Returns:
            Per host, when the last of them was deleted or had left it, Unix ms; None if one may
            be there.
        """
        all_vms = dict(self._by_customer.get(customer_id, {}))
        all_vms |= {vm_id: placed for vm_id in taken_over if (placed := self.of_vm(vm_id))}
        wanted = [all_vms[vm_id] for vm_id in vm_ids if vm_id in all_vms]
        ends: dict[str, int | None] = {}
        for placed in wanted if vm_ids else all_vms.values():
            for host_id, end in placed.ends:
                known = ends.get(host_id, 0)
                ends[host_id] = None if end is None or known is None else max(known, _ms(end))
        return ends


class Until(NamedTuple):
    """How far an answer is complete.

    Attributes:
        time: None if nobody can say.
        lost_hosts: Those that were not waited for.
    """

    time: datetime | None
    lost_hosts: tuple[str, ...] = ()


def settle(
    ends_ms: Mapping[str, int | None],
    told_ms: Mapping[str, int],
    lost: Container[str],
    *,
    start_ms: int,
    latest_ms: int,
    margin_ms: int,
) -> Until:
    """How far an answer is complete, from what is known of the hosts.

    Args:
        ends_ms: As `Placements.hosts` says.
        told_ms: How far hosts have come.
        lost: Those that are not waited for.
        start_ms: Begin of the window: what ended before it is no part of the answer.
        latest_ms: The answer is not complete beyond this.
        margin_ms: What the clocks of hosts and of those who wrote the ends are apart.
    """
    open_ms = {
        host_id: told_ms.get(host_id, -1)
        for host_id, end_ms in ends_ms.items()
        if end_ms is None or max(told_ms.get(host_id, -1), start_ms) < end_ms + margin_ms
    }
    waited_for = [until_ms for host_id, until_ms in open_ms.items() if host_id not in lost]
    until_ms = min([latest_ms, *waited_for])
    passed = tuple(sorted(h for h, told in open_ms.items() if h in lost and told < until_ms))
    if until_ms < 0:
        return Until(None, passed)
    return Until(_EPOCH + timedelta(milliseconds=until_ms), passed)


class Watermark:
    """Says until when an answer is complete.

    Args:
        store: Where it stands how far hosts have come.
        bucket: Of the VMs' records.
        losses: Hosts that are lost.
        clock: The wall's time.
        corrections: Whose rows of others' VMs are, and which are being moved.
        margin_ms: See above: the answer is never later than so long ago. What the clocks of hosts,
            gateways and batchers are apart, and how long a record takes to be written, must fit.
    """

    def __init__(
        self,
        store: Store,
        bucket: Bucket[Placed],
        losses: Bucket[HostLoss],
        clock: Clock,
        *,
        corrections: Corrections,
        margin_ms: int,
    ) -> None:
        self._store = store
        self._bucket = bucket
        self._corrections = corrections
        self._clock = clock
        self._margin_ms = margin_ms
        self.placements = Placements()
        self._mirror = Mirror(bucket, self.placements.change)
        self._losses = Mirror(losses)

    async def run(self) -> None:
        """Follow the VMs' records, and which hosts are lost, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._mirror.run(), name="placements")
            group.create_task(self._losses.run(), name="losses")

    async def complete_until(
        self, customer_id: str, vm_ids: Sequence[UUID], start: datetime
    ) -> Until:
        """The time before which what is read from the store after this call never changes.

        Args:
            customer_id: Whose VMs.
            vm_ids: Which of them; empty for all that there are or will be.
            start: Begin of the window.

        Returns:
            No time if a host has not told yet, or the records cannot be read.

        Raises:
            TransientError, FatalError: As `Store.query` does.
        """
        latest_ms = self._clock.wall_ns() // NS_PER_MS - self._margin_ms
        if not await self.records_are_current(customer_id):
            return Until(None)
        taken_over = self._corrections.taken_over(customer_id)
        ends = self.placements.hosts(customer_id, vm_ids, taken_over)
        told = await self._told(list(ends)) if ends else {}
        return settle(
            ends,
            told,
            self._losses.values,
            start_ms=_ms(start),
            latest_ms=latest_ms,
            margin_ms=self._margin_ms,
        )

    async def host_complete_until(self, host_id: str) -> Until:
        """The time before which what the store has of a host after this call never changes.

        Raises:
            TransientError, FatalError: As `Store.query` does.
        """
        return settle(
            {host_id: None},
            await self._told([host_id]),
            self._losses.values,
            start_ms=0,
            latest_ms=self._clock.wall_ns() // NS_PER_MS - self._margin_ms,
            margin_ms=self._margin_ms,
        )

    async def undisturbed(self, customer_id: str | None, vm_ids: Sequence[UUID]) -> int | None:
        """The revision of the corrections, if no rows of these VMs are being moved.

        Without a customer it is about everybody's.

        An answer is read between two calls that give the same.
        """
        try:
            async with asyncio.timeout(_CATCH_UP_S):
                revision = await self._corrections.current()
        except (TransientError, TimeoutError) as error:
            _log.warning("corrections.not_current", error=str(error) or "the mirror is behind")
            return None
        return None if self._corrections.unsettled(customer_id, vm_ids) else revision

    async def _told(self, hosts: list[str]) -> Mapping[str, int]:
        rows = await self._store.query(_QUERY, {"hosts": hosts})
        return {str(host): int(complete_ms) for host, complete_ms in rows}

    async def records_are_current(self, customer_id: str) -> bool:
        """Whether every record of the customer that was written until now is known here."""
        try:
            async with asyncio.timeout(_CATCH_UP_S):
                await self._mirror.reached(await self._bucket.last_revision(f"{customer_id}.>"))
        except (TransientError, TimeoutError) as error:
            _log.warning("records.not_current", error=str(error) or "the mirror is behind")
            return False
        return True


def _ms(instant: datetime) -> int:
    return -((_EPOCH - instant) // timedelta(milliseconds=1))
