"""The commands of a creation, under ids that follow from the VM's own."""

from __future__ import annotations

from datetime import datetime

import msgspec

from gateway.attempts import boot_id, create_id
from schemas.commands import BootVm, CreateVm
from schemas.hosts import Operation
from schemas.vms import VmRecord


def create_command(
    record: VmRecord, attempt: int, now: datetime, deadline: datetime, by: str
) -> CreateVm:
    """The create on the record's host."""
    return CreateVm(
        command_id=create_id(record.vm_id, attempt),
        customer_id=record.customer_id,
        vm_id=record.vm_id,
        host_id=record.host_id,
        issued_at=now,
        deadline=deadline,
        requested_by=by,
        spec=record.spec,
        pool=record.pool,
        region=record.region,
    )


def repeated_create(record: VmRecord, operation: Operation, attempt: int) -> CreateVm:
    """The create that an operation was written for."""
    command = create_command(
        record, attempt, operation.created_at, operation.deadline, operation.requested_by
    )
    return msgspec.structs.replace(command, host_id=operation.host_id)


def boot_command(
    record: VmRecord, now: datetime, deadline: datetime, by: str, *, host_id: str = ""
) -> BootVm:
    """The boot that was asked for together with the create."""
    return BootVm(
        command_id=boot_id(record.vm_id),
        customer_id=record.customer_id,
        vm_id=record.vm_id,
        host_id=host_id or record.host_id,
        issued_at=now,
        deadline=deadline,
        requested_by=by,
    )
