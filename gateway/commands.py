"""Putting commands on the bus: the operation first, then the command."""

from __future__ import annotations

import structlog

from gateway import acts
from gateway.errors import RETRY_AFTER_S, RefusedError, unavailable
from gateway.operations import Operations
from runtime.errors import TransientError
from runtime.publisher import Publisher
from schemas.codec import encode
from schemas.commands import Command, CreateVm
from schemas.errors import ErrorCode
from schemas.hosts import Operation, OperationStatus
from schemas.subjects import vm_command

_log = structlog.get_logger("decisec.commands")


def operation_of(command: Command) -> Operation:
    """The operation that a command starts with."""
    return Operation(
        operation_id=command.command_id,
        customer_id=command.customer_id,
        vm_id=command.vm_id,
        host_id=command.host_id,
        verb=command.verb,
        status=OperationStatus.PENDING,
        requested_by=command.requested_by,
        created_at=command.issued_at,
        deadline=command.deadline,
        placed=command.placed if isinstance(command, CreateVm) else "",
        snapshot_id=getattr(command, "snapshot_id", None),
    )


class CommandDesk:
    """Issues commands.

    Args:
        operations: Where results are told.
        publisher: The way to the streams.
        limit_s: How long a command may take to be stored.
    """

    def __init__(self, operations: Operations, publisher: Publisher, limit_s: float) -> None:
        self._operations = operations
        self._publisher = publisher
        self._limit_s = limit_s

    async def issue(self, command: Command) -> Operation:
        """Write the operation, then store the command.

        Doing it again with the same command has no further effect.

        Raises:
            RefusedError: UNAVAILABLE. The operation, if it was written, is marked failed, so
                that a command which was stored without our hearing of it is not carried out.
        """
        operation = operation_of(command)
        await acts.commit(target=f"vm {command.vm_id}", operation_id=command.command_id)
        try:
            revision = await self._operations.create(operation)
        except TransientError as error:
            self._operations.note_unwritten(operation)
            raise unavailable() from error
        try:
            await self.publish(command)
        except TransientError as error:
            await self._withdraw(operation, revision, error)
        return operation

    async def publish(self, command: Command) -> None:
        """Store a command whose operation stands already.

        Raises:
            TransientError: It was not stored, or we did not hear of it.
        """
        await self._publisher.publish(
            vm_command(command),
            encode(command),
            msg_id=str(command.command_id),
            limit_s=self._limit_s,
        )

    async def _withdraw(
        self, operation: Operation, revision: int | None, cause: TransientError
    ) -> None:
        refusal = unavailable()
        _log.warning("command.not_published", operation=str(operation.operation_id))
        if revision is None:
            raise refusal from cause
        try:
            withdrawn = await self._operations.fail(operation, refusal.info, revision)
        except TransientError:
            raise RefusedError(
                ErrorCode.UNAVAILABLE,
                "The command may or may not have been stored; operation "
                f"{operation.operation_id} will tell.",
                retry_after_s=RETRY_AFTER_S,
                unsure=True,
            ) from cause
        if withdrawn:
            raise refusal from cause
        # An agent has taken it: it was stored, only the acknowledgement was lost.
