"""Changing name and labels of a VM: JSON merge patch (RFC 7396), never losing anybody's change."""

from __future__ import annotations

from uuid import UUID

import msgspec

from gateway import acts
from gateway.contention import written
from gateway.errors import RefusedError, no_such_vm
from gateway.fleet import Fleet
from gateway.host_names import Naming, real
from gateway.vm_views import view as vm_view
from schemas.api import FieldProblem, VmPatch, VmView
from schemas.errors import ErrorCode
from schemas.subjects import vm_key
from schemas.vms import VmRecord

MAX_LABELS = 32


def patched(record: VmRecord, patch: VmPatch) -> VmRecord:
    """The record as the patch wants it: the same one if nothing changes.

    Raises:
        RefusedError: BAD_REQUEST. There would be too many labels.
    """
    name, labels = record.name, record.spec.labels
    if patch.name is not msgspec.UNSET:
        name = patch.name or ""
    if patch.labels is None:
        labels = {}
    elif patch.labels is not msgspec.UNSET:
        merged = {**labels, **patch.labels}
        labels = {key: value for key, value in merged.items() if value is not None}
    if len(labels) > MAX_LABELS:
        message = f"the VM would have {len(labels)} labels, at most {MAX_LABELS} are possible"
        raise RefusedError(
            ErrorCode.BAD_REQUEST,
            f"$.labels: {message}",
            fields=(FieldProblem(field="$.labels", message=message),),
        )
    if name == record.name and labels == record.spec.labels:
        return record
    return msgspec.structs.replace(
        record,
        name=name,
        spec=msgspec.structs.replace(record.spec, labels=labels),
        generation=record.generation + 1,
    )


async def patch(
    fleet: Fleet,
    customer_id: str,
    vm_id: UUID,
    wanted: VmPatch,
    generations: frozenset[int] | None,
    naming: Naming = real,
) -> VmView:
    """Apply a patch to the record as it stands on the server, again if somebody else was faster.

    Args:
        fleet: The records.
        customer_id: Whose VM.
        vm_id: Which.
        wanted: The patch.
        generations: Only if the VM stands at one of these; None for any.
        naming: What its owner is told of its host.

    Raises:
        RefusedError: NOT_FOUND, PRECONDITION_FAILED, BAD_REQUEST, or UNAVAILABLE if others write
            this VM all the time.
        TransientError: The server cannot be reached; the patch may or may not have been stored.
    """
    key = vm_key(customer_id, vm_id)

    async def attempt() -> VmView:
        found = await fleet.fresh(customer_id, vm_id)
        if found is None:
            raise no_such_vm()
        entry, status = found
        record = patched(entry.value, wanted)
        at = entry.value.generation
        if generations is not None and at not in generations:
            # Unless an earlier try of this very request has made it what is wanted.
            ours = acts.repeated() and at - 1 in generations and record is entry.value
            if not ours:
                raise changed()
        if record is not entry.value:
            fleet.note(record, await fleet.specs.update(key, record, entry.revision))
        return vm_view(record, status, naming)

    return await written(attempt, "this VM")


def changed() -> RefusedError:
    """The VM is not what the caller has seen."""
    return RefusedError(
        ErrorCode.PRECONDITION_FAILED,
        "The VM has changed since you looked at it. Look again, and send your change anew.",
    )
