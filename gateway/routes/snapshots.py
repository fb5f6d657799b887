"""Snapshots: taken, restored, looked at, thrown away."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from litestar import Response, delete, get, post
from litestar.params import JSONBody, QueryParameter

from gateway.bodies import BODY, StrictRequest
from gateway.routes import examples
from gateway.routes.common import (
    COMMITS,
    Cursor,
    Id,
    Prefer,
    answer,
    mutation,
    query_id,
    vm_of,
    wait_s_of,
    who,
)
from gateway.snapshots import SnapshotService, no_such_snapshot
from schemas.api import (
    RestoreRequest,
    SnapshotList,
    SnapshotRequest,
    SnapshotView,
    VmAndOperation,
)
from schemas.errors import InvalidIdError
from schemas.ids import parse_uuid

SnapshotBody = JSONBody[SnapshotRequest | None]
Limit = Annotated[int, QueryParameter(ge=1, le=1000, description="Snapshots on a page.")]
OfVm = Annotated[str, QueryParameter(description="Only snapshots of this VM.")]


@post(
    "/vms/{vm_id:str}/snapshot",
    opt={BODY: SnapshotRequest, COMMITS: True},
    summary="Take a snapshot of a VM",
    status_code=202,
    operation_class=examples.snapshot,
)
async def snapshot_vm(
    request: StrictRequest, vm_id: Id, data: SnapshotBody = None, prefer: Prefer = ""
) -> Response[VmAndOperation]:
    """Keep memory and disk of a VM that runs or is paused; its guest stands still meanwhile.

    The operation's `snapshot_id` names the snapshot, which is there once the operation has
    succeeded. A VM has 8 at most, and they go with the VM.
    """
    wait_s = wait_s_of(prefer)
    kind = (data or SnapshotRequest()).kind
    outcome = await snapshots(request).take(who(request), vm_of(vm_id), kind, wait_s)
    return mutation(outcome, wait_s, 200)


@post(
    "/vms/{vm_id:str}/restore",
    opt={BODY: RestoreRequest, COMMITS: True},
    summary="Start a VM from a snapshot",
    status_code=202,
    operation_class=examples.restore,
)
async def restore_vm(
    request: StrictRequest, vm_id: Id, data: JSONBody[RestoreRequest], prefer: Prefer = ""
) -> Response[VmAndOperation]:
    """A new incarnation of a VM that is stopped or was never started, from its own snapshot.

    Or from one of another VM of yours, if both are in one place and of the same shape: 409
    `conflict` otherwise. Its disk becomes that of the snapshot.
    """
    wait_s = wait_s_of(prefer)
    outcome = await snapshots(request).restore(who(request), vm_of(vm_id), data.snapshot_id, wait_s)
    return mutation(outcome, wait_s, 200)


@get("/snapshots", summary="List snapshots", operation_class=examples.snapshot_list)
async def list_snapshots(
    request: StrictRequest, limit: Limit = 100, cursor: Cursor = "", vm_id: OfVm = ""
) -> Response[SnapshotList]:
    """Snapshots that are there to be restored, in the order in which they were asked for."""
    of_vm = query_id("vm_id", vm_id) if vm_id else None
    return answer(snapshots(request).page(who(request), vm_id=of_vm, cursor=cursor, limit=limit))


@get(
    "/snapshots/{snapshot_id:str}",
    summary="Look at a snapshot",
    operation_class=examples.snapshot_view,
)
async def get_snapshot(request: StrictRequest, snapshot_id: Id) -> Response[SnapshotView]:
    """One snapshot: of which VM, when, and what shape a VM needs to be restored from it."""
    return answer(snapshots(request).get(who(request), _snapshot_of(snapshot_id)))


@delete(
    "/snapshots/{snapshot_id:str}",
    opt={COMMITS: True},
    summary="Throw a snapshot away",
    status_code=202,
    operation_class=examples.discard,
)
async def delete_snapshot(
    request: StrictRequest, snapshot_id: Id, prefer: Prefer = ""
) -> Response[VmAndOperation]:
    """Free what it takes. VMs that were started from it go on."""
    wait_s = wait_s_of(prefer)
    outcome = await snapshots(request).discard(who(request), _snapshot_of(snapshot_id), wait_s)
    return mutation(outcome, wait_s, 200)


def snapshots(request: StrictRequest) -> SnapshotService:
    """The service that the app was built around."""
    found: SnapshotService = request.app.state.snapshots
    return found


def _snapshot_of(text: str) -> UUID:
    try:
        return parse_uuid(text)
    except InvalidIdError:
        raise no_such_snapshot() from None


HANDLERS = (snapshot_vm, restore_vm, list_snapshots, get_snapshot, delete_snapshot)
