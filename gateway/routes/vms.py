"""VMs: made, looked at, and what can be done to them."""

from __future__ import annotations

from typing import Annotated, Any

from litestar import Response, delete, get, post
from litestar.params import JSONBody, QueryParameter

from gateway.bodies import BODY, StrictRequest
from gateway.documents import RawConsole
from gateway.routes.common import (
    COMMITS,
    Id,
    Prefer,
    answer,
    mutation,
    query_id,
    service,
    vm_of,
    wait_s_of,
    who,
    wrong,
)
from schemas.api import CreateVmRequest, ShutdownRequest, VmAndOperation, VmList, VmView
from schemas.consoles import MAX_CHUNK_BYTES, ConsoleChunk
from schemas.units import MAX_COUNTER
from schemas.vms import VmState

StopBody = JSONBody[ShutdownRequest | None]
Limit = Annotated[int, QueryParameter(ge=1, le=1000, description="VMs on a page.")]
Cursor = Annotated[str, QueryParameter(description="`next_cursor` of the page before.")]
State = Annotated[
    VmState | None, QueryParameter(name="state", description="Only VMs in this state.")
]
Offset = Annotated[
    int | None,
    QueryParameter(ge=0, le=MAX_COUNTER, description="Position in all that was ever printed."),
]
TailBytes = Annotated[
    int | None,
    QueryParameter(ge=0, le=MAX_COUNTER, description="Begin so many bytes before the end."),
]
ChunkLimit = Annotated[
    int, QueryParameter(ge=1, le=MAX_CHUNK_BYTES, description="Bytes at once, at most.")
]


@post("/vms", opt={BODY: CreateVmRequest, COMMITS: True}, summary="Create a VM", status_code=202)
async def create_vm(
    request: StrictRequest, data: JSONBody[CreateVmRequest], prefer: Prefer = ""
) -> Response[VmAndOperation]:
    """Place a VM; 201 once it is there, 202 while it is being made."""
    wait_s = wait_s_of(prefer)
    outcome = await service(request).create(who(request), data, wait_s)
    return mutation(outcome, wait_s, 201)


@get("/vms", summary="List VMs")
async def list_vms(
    request: StrictRequest,
    limit: Limit = 100,
    cursor: Cursor = "",
    vm_state: State = None,
) -> Response[VmList]:
    """VMs in the order in which they were made."""
    after = query_id("cursor", cursor) if cursor else None
    return answer(service(request).page(who(request), after=after, limit=limit, state=vm_state))


@get("/vms/{vm_id:str}", summary="Look at a VM")
async def get_vm(request: StrictRequest, vm_id: Id) -> Response[VmView]:
    """One VM."""
    return answer(service(request).get(who(request), vm_of(vm_id)))


@get(
    "/vms/{vm_id:str}/console",
    summary="Read a VM's console",
    operation_class=RawConsole,
)
async def get_console(
    request: StrictRequest,
    vm_id: Id,
    offset: Offset = None,
    tail_bytes: TailBytes = None,
    limit: ChunkLimit = MAX_CHUNK_BYTES,
) -> Response[ConsoleChunk]:
    """What the VM printed on its serial port, over all its starts; the last MiB at least is kept.

    Without `offset` and `tail_bytes` it begins with the oldest that is kept. Offsets count from
    the first byte ever printed. Go on from `next_offset`; with `end` there is no more yet.
    """
    if offset is not None and tail_bytes is not None:
        raise wrong("tail_bytes", "give it or offset, not both")
    chunk = await service(request).console(
        who(request), vm_of(vm_id), offset=offset, tail_bytes=tail_bytes, limit_bytes=limit
    )
    if request.accept.best_match(["application/json", "text/plain"]) != "text/plain":
        return answer(chunk)
    headers = {
        "Decisec-Offset": str(chunk.offset),
        "Decisec-Next-Offset": str(chunk.next_offset),
        "Decisec-End": "true" if chunk.end else "false",
        "Decisec-Lost-Bytes": str(chunk.lost_bytes),
    }
    raw: Response[Any] = Response(chunk.data, headers=headers, media_type="text/plain")
    return raw


async def _act(
    request: StrictRequest, vm_id: Id, verb: str, prefer: str, grace_s: float | None = None
) -> Response[VmAndOperation]:
    wait_s = wait_s_of(prefer)
    outcome = await service(request).act(
        who(request), vm_of(vm_id), verb, grace_s=grace_s, wait_s=wait_s
    )
    return mutation(outcome, wait_s, 200)


@delete("/vms/{vm_id:str}", opt={COMMITS: True}, summary="Delete a VM", status_code=202)
async def delete_vm(
    request: StrictRequest, vm_id: Id, prefer: Prefer = ""
) -> Response[VmAndOperation]:
    """End the VM if it runs, and free all it holds."""
    return await _act(request, vm_id, "delete", prefer)


@post("/vms/{vm_id:str}/boot", opt={COMMITS: True}, summary="Boot a VM", status_code=202)
async def boot_vm(
    request: StrictRequest, vm_id: Id, prefer: Prefer = ""
) -> Response[VmAndOperation]:
    """Start the VM: a new incarnation."""
    return await _act(request, vm_id, "boot", prefer)


@post("/vms/{vm_id:str}/pause", opt={COMMITS: True}, summary="Pause a VM", status_code=202)
async def pause_vm(
    request: StrictRequest, vm_id: Id, prefer: Prefer = ""
) -> Response[VmAndOperation]:
    """Stop the vCPUs; memory stays allocated and billed."""
    return await _act(request, vm_id, "pause", prefer)


@post("/vms/{vm_id:str}/resume", opt={COMMITS: True}, summary="Resume a VM", status_code=202)
async def resume_vm(
    request: StrictRequest, vm_id: Id, prefer: Prefer = ""
) -> Response[VmAndOperation]:
    """Let a paused VM go on."""
    return await _act(request, vm_id, "resume", prefer)


@post(
    "/vms/{vm_id:str}/shutdown",
    opt={BODY: ShutdownRequest, COMMITS: True},
    summary="Shut a VM down",
    status_code=202,
)
async def shutdown_vm(
    request: StrictRequest,
    vm_id: Id,
    data: StopBody = None,
    prefer: Prefer = "",
) -> Response[VmAndOperation]:
    """Ask the guest to stop, and end the VMM after the grace period."""
    grace_s = (data or ShutdownRequest()).grace_s
    return await _act(request, vm_id, "shutdown", prefer, grace_s)


@post(
    "/vms/{vm_id:str}/reboot",
    opt={BODY: ShutdownRequest, COMMITS: True},
    summary="Reboot a VM",
    status_code=202,
)
async def reboot_vm(
    request: StrictRequest,
    vm_id: Id,
    data: StopBody = None,
    prefer: Prefer = "",
) -> Response[VmAndOperation]:
    """Shut down and boot again: a new incarnation."""
    grace_s = (data or ShutdownRequest()).grace_s
    return await _act(request, vm_id, "reboot", prefer, grace_s)


HANDLERS = (
    create_vm,
    list_vms,
    get_vm,
    get_console,
    delete_vm,
    boot_vm,
    shutdown_vm,
    pause_vm,
    resume_vm,
    reboot_vm,
)
