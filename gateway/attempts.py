"""A create and the tries that it takes: their ids, and what they have come to together.

A create that a host refuses for want of room goes on on another one, as a command of its own. Who
asked for it knows the first, and is shown the end of the last.
"""

from __future__ import annotations

from uuid import UUID

import msgspec

from gateway.derived_ids import derived
from gateway.fleet import Fleet
from gateway.operations import Operations
from runtime.clock import utc_now
from schemas.errors import ErrorCode
from schemas.hosts import Operation, OperationStatus
from schemas.subjects import vm_key

MAX_ATTEMPTS = 16


def create_id(vm_id: UUID, attempt: int) -> UUID:
    """Command id of the create on the `attempt`-th host, from 0."""
    return derived(vm_id, b"create%d" % attempt)


def boot_id(vm_id: UUID) -> UUID:
    """Command id of the boot that was asked for together with the create; lists show it after."""
    return derived(vm_id, b"boot", later_ms=1)


def is_further_attempt(operation: Operation) -> bool:
    """Whether this is a create on a second host or a later one."""
    return operation.verb == "create" and operation.operation_id != create_id(operation.vm_id, 0)


def refused_for_room(operation: Operation) -> bool:
    """Whether a create may go on on another host."""
    return (
        operation.status is OperationStatus.FAILED
        and operation.error is not None
        and operation.error.code is ErrorCode.NO_CAPACITY
    )


class Attempts:
    """What creates have come to, over all hosts that they were tried on.

    Args:
        fleet: Knows which VMs are still being placed.
        operations: The tries.
    """

    def __init__(self, fleet: Fleet, operations: Operations) -> None:
        self._fleet = fleet
        self._operations = operations

    async def current(self, operation: Operation) -> Operation:
        """What any operation has come to.

        Raises:
            TransientError: The server cannot be reached.
        """
        if operation.operation_id != create_id(operation.vm_id, 0):
            return operation
        for attempt in range(1, MAX_ATTEMPTS):
            if not refused_for_room(operation):
                return operation
            successor = await self._operations.get(create_id(operation.vm_id, attempt))
            if successor is None:
                break
            operation = successor
        return self._while_placed(operation)

    def remembered(self, operation: Operation) -> Operation:
        """The same, as far as this gateway remembers the tries on further hosts."""
        if operation.operation_id != create_id(operation.vm_id, 0):
            return operation
        for attempt in range(1, MAX_ATTEMPTS):
            if not refused_for_room(operation):
                return operation
            successor = self._operations.history.get(create_id(operation.vm_id, attempt))
            if successor is None:
                break
            operation = successor
        return self._while_placed(operation)

    def _while_placed(self, operation: Operation) -> Operation:
        record = self._fleet.record(vm_key(operation.customer_id, operation.vm_id))
        being_placed = record is not None and record.deleted_at is None
        if being_placed and refused_for_room(operation) and utc_now() < operation.deadline:
            return msgspec.structs.replace(
                operation, status=OperationStatus.PENDING, error=None, finished_at=None
            )
        return operation
