"""What an inventory hears of hosts and VMs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from gateway.inventory import Inventory
from schemas.errors import ErrorCode, ErrorInfo
from schemas.hosts import HostInfo, Operation, OperationStatus, Resources
from schemas.ids import new_id
from schemas.vms import VmRecord, VmSpec, VmState, VmStatus

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MS = timedelta(milliseconds=1)
BUCKETS = ("vm_specs", "vm_status", "operations", "hosts")
SPEC = VmSpec(image="tiny", vcpus=1, memory_mib=1024)
ROOM = Resources(vcpus=8, memory_mib=8192, disk_mib=8192, slots=4)


def heartbeat(host_id: str, at: datetime, free: Resources, *admitted: UUID) -> HostInfo:
    return HostInfo(
        host_id=host_id,
        run_id=UUID(int=1),
        boot_id="b",
        version="1",
        driver="simulator",
        images=("tiny",),
        capacity=ROOM,
        free=free,
        heartbeat_at=at,
        admitted=admitted,
    )


def record(vm_id: UUID, host_id: str, spec: VmSpec = SPEC, at: datetime = NOW) -> VmRecord:
    return VmRecord(vm_id=vm_id, customer_id="acme", host_id=host_id, spec=spec, created_at=at)


def status(vm_id: UUID, host_id: str, at: datetime, state: VmState = VmState.CREATED) -> VmStatus:
    return VmStatus(vm_id=vm_id, customer_id="acme", host_id=host_id, state=state, updated_at=at)


def ended(
    vm_id: UUID, host_id: str, at: datetime, code: ErrorCode | None = None, verb: str = "create"
) -> Operation:
    return Operation(
        operation_id=new_id(),
        customer_id="acme",
        vm_id=vm_id,
        host_id=host_id,
        verb=verb,
        status=OperationStatus.FAILED if code else OperationStatus.SUCCEEDED,
        error=ErrorInfo(code=code, message="") if code else None,
        created_at=NOW,
        deadline=NOW + timedelta(seconds=60),
        finished_at=at,
    )


def known(free: Resources = ROOM) -> Inventory:
    inventory = Inventory(clock=lambda: NOW)
    inventory.take_host("h", heartbeat("h", NOW, free))
    return inventory
