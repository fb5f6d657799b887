"""Results of commands, as the bus has them: of what was done, and of what was refused."""

from __future__ import annotations

from runtime.clock import utc_now
from schemas.commands import Command, CreateVm
from schemas.errors import ErrorCode, ErrorInfo
from schemas.hosts import Operation, OperationStatus
from vm_agent.scrutiny import Claims, Objection, Reason
from vm_agent.store import Done


def failure_of(host_id: str, claims: Claims, reason: Reason) -> Operation | None:
    """The bad end of what is no command, if it is known whose it would have been."""
    if claims.command_id is None or claims.vm_id is None or not claims.customer_id:
        return None
    now = utc_now()
    return Operation(
        operation_id=claims.command_id,
        customer_id=claims.customer_id,
        vm_id=claims.vm_id,
        host_id=host_id,
        verb=claims.verb or "unknown",
        status=OperationStatus.FAILED,
        error=ErrorInfo(
            code=ErrorCode.BAD_REQUEST, message=f"The host cannot read the command: {reason}."
        ),
        requested_by=claims.requested_by,
        created_at=now,
        deadline=now,
        finished_at=now,
    )


def refused(command: Command, objection: Objection) -> Done:
    """The end of a command that is not carried out."""
    return Done(
        command_id=command.command_id,
        verb=command.verb,
        state=objection.state,
        error=objection.error,
        finished_at=utc_now(),
    )


def operation_of(command: Command, done: Done, digest: str) -> Operation:
    """What came of a command."""
    failed = done.error is not None
    # A VM of somebody else and no VM look the same from outside.
    hidden = done.error is not None and done.error.code is ErrorCode.NOT_FOUND
    return Operation(
        operation_id=command.command_id,
        customer_id=command.customer_id,
        vm_id=command.vm_id,
        host_id=command.host_id,
        verb=command.verb,
        status=OperationStatus.FAILED if failed else OperationStatus.SUCCEEDED,
        state=None if hidden else done.state,
        error=done.error,
        requested_by=command.requested_by,
        created_at=command.issued_at,
        deadline=command.deadline,
        finished_at=done.finished_at,
        placed=command.placed if isinstance(command, CreateVm) else "",
        snapshot_id=getattr(command, "snapshot_id", None),
        digest=digest,
    )
