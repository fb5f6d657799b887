"""VMs: made, looked at, and what can be done to them."""

from __future__ import annotations

from typing import Annotated, Any

from litestar import Response, delete, get, patch, post
from litestar.params import JSONBody, QueryParameter

from gateway.bodies import BODY, MEDIA, MERGE_PATCH, StrictRequest
from gateway.documents import RawConsole
from gateway.listing import VmQuery
from gateway.routes import examples
from gateway.routes.common import (
    COMMITS,
    Cursor,
    Id,
    IfMatch,
    Prefer,
    answer,
    etag,
    generations_of,
    mutation,
    service,
    vm_of,
    wait_s_of,
    who,
    wrong,
)
from schemas.api import CreateVmRequest, ShutdownRequest, VmAndOperation, VmList, VmPatch, VmView
from schemas.consoles import MAX_CHUNK_BYTES, ConsoleChunk
from schemas.network_checks import NetworkCheck
from schemas.requests import Sort
from schemas.units import MAX_COUNTER
from schemas.vms import VmState

StopBody = JSONBody[ShutdownRequest | None]
Limit = Annotated[int, QueryParameter(ge=1, le=1000, description="VMs on a page.")]
Labels = Annotated[
    list[str] | None,
    QueryParameter(
        name="label",
        max_items=32,
        description="Only VMs with this label: `team` for any value, `team:web` for one. Given "
        "several times, all of them.",
    ),
]
Host = Annotated[
    str,
    QueryParameter(description="Only VMs on this host; needs the scope `admin`.", max_length=63),
]
Image = Annotated[str, QueryParameter(description="Only VMs of this image.", max_length=63)]
Name = Annotated[str, QueryParameter(description="Only VMs of this name.", max_length=63)]
SortBy = Annotated[
    Sort,
    QueryParameter(
        description="By time of making or by name; `-` for the other way round. VMs of one name "
        "come in the order of making."
    ),
]
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


@get("/vms", summary="List VMs", operation_class=examples.vm_list)
async def list_vms(
    request: StrictRequest,
    limit: Limit = 100,
    cursor: Cursor = "",
    vm_state: State = None,
    labels: Labels = None,
    host: Host = "",
    image: Image = "",
    name: Name = "",
    sort: SortBy = Sort.CREATED,
) -> Response[VmList]:
    """VMs that fit all the filters that are given, page by page.

    A page can hold fewer VMs than `limit`, even none, and yet have a `next_cursor`: a search looks
    at a bounded number of VMs at a time. The list has ended when `next_cursor` is empty. VMs that
    come and go meanwhile move no others.
    """
    query = VmQuery(
        state=vm_state,
        labels=_labels(labels or []),
        host=host or None,
        image=image or None,
        name=name or None,
        sort=sort,
    )
    return answer(await service(request).page(who(request), query, cursor=cursor, limit=limit))


def _labels(given: list[str]) -> dict[str, str | None]:
    wanted: dict[str, str | None] = {}
    for text in given:
        name, colon, value = text.partition(":")
        known = wanted.get(name)
        if known is not None and colon and known != value:
            raise wrong("label", f"no VM has two values of one label: {name[:64]}")
        wanted[name] = value if colon else known
    return wanted


@get("/vms/{vm_id:str}", summary="Look at a VM", operation_class=examples.vm)
async def get_vm(request: StrictRequest, vm_id: Id) -> Response[VmView]:
    """One VM; its `ETag` tells whether name or labels have changed."""
    found = service(request).get(who(request), vm_of(vm_id))
    return answer(found, headers={"ETag": etag(found)})


@patch(
    "/vms/{vm_id:str}",
    opt={BODY: VmPatch, MEDIA: (MERGE_PATCH, "application/json")},
    summary="Change a VM's name or labels",
    operation_class=examples.patch,
)
async def patch_vm(
    request: StrictRequest, vm_id: Id, data: JSONBody[VmPatch], if_match: IfMatch = ""
) -> Response[VmView]:
    """A JSON merge patch (RFC 7396): what is not named stays, `null` removes.

    Done when it is answered, so `Prefer: wait` changes nothing. Of two patches at once neither
    is lost. With `If-Match` it is done only if nobody else has changed the VM since: 412
    `precondition_failed` otherwise.
    """
    changed = await service(request).patch(
        who(request), vm_of(vm_id), data, generations_of(if_match)
    )
    return answer(changed, headers={"ETag": etag(changed)})


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


@post(
    "/vms/{vm_id:str}/network-check",
    summary="Prove that a VM can be reached",
    status_code=200,
)
async def check_network(request: StrictRequest, vm_id: Id) -> Response[NetworkCheck]:
    """Compare what stands for the VM with what should, and send it probes: takes a second or two.

    Probes go to the VM's own addresses and to no other; they count as received by it. One VM is
    looked at by one at a time. A VM that does not run is sent nothing.
    """
    return answer(await service(request).check_network(who(request), vm_of(vm_id)))


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
    patch_vm,
    get_console,
    check_network,
    delete_vm,
    boot_vm,
    shutdown_vm,
    pause_vm,
    resume_vm,
    reboot_vm,
)
