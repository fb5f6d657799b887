"""Questions about operations."""

from __future__ import annotations

from uuid import UUID

from gateway.attempts import Attempts, is_further_attempt
from gateway.auth import Principal, Scope
from gateway.cursors import Position, digest, seal, unseal
from gateway.errors import RefusedError
from gateway.history import Place, place_of
from gateway.operations import Operations, view
from runtime.clock import utc_now
from schemas.api import OperationList, OperationView
from schemas.errors import ErrorCode
from schemas.hosts import OperationStatus


class OperationService:
    """Looks at operations, and lists them. See `VmService` for what all raise.

    Args:
        operations: All that there are.
        attempts: Knows what creates have come to.
    """

    def __init__(self, operations: Operations, attempts: Attempts) -> None:
        self._operations = operations
        self._attempts = attempts

    async def get(self, principal: Principal, operation_id: UUID) -> OperationView:
        """One operation."""
        principal.require(Scope.VMS_READ)
        found = await self._operations.get(operation_id)
        if found is None or found.customer_id != principal.customer_id:
            raise no_such_operation()
        current = await self._attempts.current(found)
        return view(current, utc_now(), operation_id)

    def page(
        self,
        principal: Principal,
        *,
        vm_id: UUID | None = None,
        status: OperationStatus | None = None,
        cursor: str = "",
        limit: int = 100,
    ) -> OperationList:
        """The operations of late, newest first; see `History` for how far back.

        Those of VMs that are deleted are there, too.

        Raises:
            RefusedError: BAD_REQUEST for a wrong cursor.
        """
        principal.require(Scope.VMS_READ)
        customer_id = principal.customer_id
        query = digest("operations", customer_id, str(vm_id), status.value if status else None)
        begin = unseal(query, cursor)
        last = begin.key if begin else None
        now = utc_now()
        found: list[OperationView] = []
        place: Place | None = None
        for operation in self._operations.history.before(customer_id, last):
            if (vm_id is not None and operation.vm_id != vm_id) or is_further_attempt(operation):
                continue
            current = self._attempts.remembered(operation)
            seen = view(current, now, operation.operation_id)
            if status is not None and seen.status is not status:
                continue
            if len(found) == limit:
                return OperationList(operations=tuple(found), next_cursor=_seal(query, place))
            found.append(seen)
            place = place_of(operation)
        return OperationList(operations=tuple(found))


def _seal(query: str, place: Place | None) -> str:
    return seal(query, Position(place[0], UUID(place[1]))) if place else ""


def no_such_operation() -> RefusedError:
    """An operation that is missing, or another customer's: one answer for both."""
    return RefusedError(ErrorCode.NOT_FOUND, "There is no such operation.")
