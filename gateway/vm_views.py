"""A VM as it is shown."""

from __future__ import annotations

import msgspec

from gateway.host_names import Naming, real
from schemas.api import VmView
from schemas.vms import VmRecord, VmState, VmStatus


def view(record: VmRecord, status: VmStatus | None, naming: Naming = real) -> VmView:
    """A VM as its owner sees it, but for its host, which is called as `naming` says."""
    if status is not None and status.host_id != record.host_id:
        # It was placed elsewhere meanwhile.
        status = None
    seen = VmView(
        vm_id=record.vm_id,
        customer_id=record.customer_id,
        name=record.name,
        state=VmState.PENDING,
        spec=record.spec,
        host_id=naming(record),
        created_at=record.created_at,
        generation=record.generation,
    )
    if status is None:
        return seen
    return msgspec.structs.replace(
        seen,
        state=status.state,
        incarnation=status.incarnation,
        driver=status.driver,
        simulated=status.simulated,
        started_at=status.started_at,
        final_counters=status.final_counters,
        exit_reason=status.exit_reason,
        last_error=status.last_error,
        failures=status.failures,
        restart_at=status.restart_at,
        addresses=status.addresses,
        dropped=status.dropped,
        quarantined=status.quarantined,
    )
