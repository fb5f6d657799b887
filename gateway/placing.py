"""Placing VMs on hosts: by the operator's strategy, and away from hosts that do not begin."""

from __future__ import annotations

import time
from collections.abc import Mapping, Set
from datetime import datetime
from uuid import UUID

import structlog

from gateway.fleet import Fleet
from gateway.operations import Operations, failed
from gateway.placement import Placement, Strategy
from gateway.settings import GatewaySettings
from runtime.buckets import Entry
from runtime.clock import utc_now
from schemas.errors import ErrorCode, ErrorInfo
from schemas.hosts import Operation, OperationStatus
from schemas.subjects import vm_key
from schemas.vms import VmRecord, VmSpec

_log = structlog.get_logger("decisec.placing")

_LOOK_EVERY_S = 0.2

_NOT_BEGUN = ErrorInfo(
    code=ErrorCode.NO_CAPACITY, message="The host did not begin in time; another one was tried."
)


def strategies_of(settings: GatewaySettings) -> dict[str, Strategy]:
    """Strategies of the pools that have one of their own."""
    pairs = (pair.partition("=") for pair in settings.placement_pools.split(",") if pair)
    return {pool: Strategy(name) for pool, _, name in pairs}


class Placer:
    """Places VMs.

    Args:
        fleet: Hosts and records.
        operations: Results.
        region: Only hosts of this region are used.
        strategy: Which of the hosts that fit is taken.
        strategies: The same for pools that have one of their own.
        begin_within_s: A host that has not begun a create after this loses it to another one.
    """

    def __init__(
        self,
        fleet: Fleet,
        operations: Operations,
        *,
        region: str,
        strategy: Strategy = Strategy.SPREAD,
        strategies: Mapping[str, Strategy] | None = None,
        begin_within_s: float = 5.0,
    ) -> None:
        self._fleet = fleet
        self._operations = operations
        self._region = region
        self._strategy = strategy
        self._strategies = strategies or {}
        self._begin_within_s = begin_within_s
        self._silent_hosts: frozenset[str] = frozenset()
        self._looked_s = float("-inf")
        operations.listen(fleet.inventory.take_operation)

    @property
    def region(self) -> str:
        """Where VMs are placed."""
        return self._region

    def strategy(self, pool: str) -> Strategy:
        """Which of the hosts of a pool is taken."""
        return self._strategies.get(pool, self._strategy)

    def place(
        self,
        customer_id: str,
        vm_id: UUID,
        spec: VmSpec,
        pool: str,
        now: datetime,
        avoid: Set[str] = frozenset(),
    ) -> Placement:
        """Choose a host for a VM and hold room there, and nowhere else.

        Two requests are never given the same room, since nothing is awaited in between.

        Args:
            customer_id: Whose VM.
            vm_id: Which one.
            spec: What it needs and wishes.
            pool: The customer's.
            now: The time.
            avoid: Hosts that have refused it, or did not begin.
        """
        inventory = self._fleet.inventory
        inventory.release(vm_id)
        choice = self.choose(customer_id, vm_id, spec, pool, now, avoid)
        if choice.host is not None:
            inventory.hold(vm_id, choice.host.host_id, spec, now)
        return choice

    def choose(
        self,
        customer_id: str,
        vm_id: UUID,
        spec: VmSpec,
        pool: str,
        now: datetime,
        avoid: Set[str] = frozenset(),
    ) -> Placement:
        """Choose as `place` does, and hold nothing."""
        return self._fleet.inventory.choose(
            spec,
            now,
            pool=pool,
            region=self._region,
            strategy=self.strategy(pool),
            avoid=avoid,
            silent=self.silent(),
            peers=self._fleet.peers(customer_id, spec, vm_id),
        )

    def release(self, vm_id: UUID) -> None:
        """Hold no room for a VM any more."""
        self._fleet.inventory.release(vm_id)

    async def begun(
        self, record: VmRecord, operation: Operation, avoid: Set[str]
    ) -> Operation | None:
        """Wait until a create has ended, or is under way on its host, or its time is over.

        One that its host does not begin is withdrawn, once there is another host for it. That host
        finds a result when it comes back, and does nothing.

        Returns:
            The end, which may be that withdrawal: it looks like a refusal for want of room.
            Otherwise None.

        Raises:
            TransientError: The server cannot be reached.
            PoisonError: The operation is malformed.
        """
        operation_id = operation.operation_id
        while (left_s := (operation.deadline - utc_now()).total_seconds()) > 0:
            ended = await self._operations.finished(operation_id, min(self._begin_within_s, left_s))
            if ended is not None:
                return ended
            entry = await self._operations.bucket.get(str(operation_id))
            if entry is None or entry.value.status is OperationStatus.RUNNING:
                return None
            if entry.value.finished:
                return entry.value
            status = self._fleet.status(vm_key(record.customer_id, record.vm_id))
            if status is not None and status.host_id == operation.host_id:
                return None  # begun, by an agent that does not say so in the operation
            if utc_now() < operation.deadline:
                withdrawn = await self._withdraw(record, entry, avoid)
                if withdrawn is not None:
                    return withdrawn
        return None

    def silent(self) -> frozenset[str]:
        """Hosts that are not heard of, looked at a few times a second."""
        now_s = time.monotonic()
        if now_s - self._looked_s > _LOOK_EVERY_S:
            self._silent_hosts, self._looked_s = self._fleet.silent(now_s), now_s
        return self._silent_hosts

    async def _withdraw(
        self, record: VmRecord, entry: Entry[Operation], avoid: Set[str]
    ) -> Operation | None:
        """Take a create away from its host if there is another one, and hold room there."""
        operation = entry.value
        spec, vm_id, silent = record.spec, record.vm_id, operation.host_id
        now = utc_now()
        choice = self.place(record.customer_id, vm_id, spec, record.pool, now, avoid | {silent})
        moved = False
        try:
            moved = choice.host is not None and await self._operations.fail(
                operation, _NOT_BEGUN, entry.revision
            )
        finally:
            if not moved:
                self._fleet.inventory.hold(vm_id, silent, spec, now)
        if not moved:
            return None
        _log.warning("create.not_begun", vm_id=str(vm_id), host=silent)
        return failed(operation, _NOT_BEGUN, now)
