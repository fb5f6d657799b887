"""The HTTP routes: what is asked, in; what has come of it, out. No decision is made here."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import Response, Router, delete, get, post
from litestar.connection import ASGIConnection
from litestar.exceptions import NotFoundException
from litestar.handlers import BaseRouteHandler
from litestar.params import FromPath, HeaderParameter, JSONBody, QueryParameter

from gateway.auth import Authenticator, Principal
from gateway.bodies import BODY, StrictRequest
from gateway.documents import RawConsole
from gateway.errors import RefusedError, no_such_vm
from gateway.service import MAX_WAIT_S, Outcome, VmService
from runtime.clock import utc_now
from schemas.api import (
    CreateVmRequest,
    FieldProblem,
    OperationView,
    ShutdownRequest,
    VmAndOperation,
    VmList,
    VmView,
)
from schemas.codec import encode
from schemas.consoles import MAX_CHUNK_BYTES, ConsoleChunk
from schemas.errors import ErrorCode, InvalidIdError
from schemas.ids import parse_uuid
from schemas.units import MAX_COUNTER
from schemas.usage import UsageReport
from schemas.vms import Timestamp, VmState

_PRINCIPAL = "principal"
_WAIT = re.compile(r'(?:^|,)\s*wait\s*=\s*"?(\d{1,9})"?\s*(?=;|,|$)', re.IGNORECASE)

Id = FromPath[str]
StopBody = JSONBody[ShutdownRequest | None]
Limit = Annotated[int, QueryParameter(ge=1, le=1000, description="VMs on a page.")]
Cursor = Annotated[str, QueryParameter(description="`next_cursor` of the page before.")]
State = Annotated[
    VmState | None, QueryParameter(name="state", description="Only VMs in this state.")
]
Instant = Annotated[str, QueryParameter(description="RFC 3339, with offset. Default: today, UTC.")]
VmIds = Annotated[list[str] | None, QueryParameter(name="vm_id", description="Only these VMs.")]
Prefer = Annotated[
    str, HeaderParameter(name="Prefer", description="`wait=N`: wait up to N seconds, at most 60.")
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


class WhoAmI(msgspec.Struct, frozen=True, kw_only=True):
    """What the token says."""

    subject: str
    customer_id: str
    scopes: tuple[str, ...]


async def authenticated(
    connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler
) -> None:
    """Guard: go on only with a good token, and only for a path in its one spelling."""
    raw: bytes = connection.scope["raw_path"]
    if b"%" in raw or b"//" in raw or raw.endswith(b"/"):
        # The router would tidy these up; no path of this API needs them.
        raise NotFoundException
    authenticator: Authenticator = connection.app.state.authenticator
    principal = await authenticator.principal(connection.headers.get("authorization"))
    connection.scope["state"][_PRINCIPAL] = principal


def _who(request: StrictRequest) -> Principal:
    principal: Principal = request.scope["state"][_PRINCIPAL]
    return principal


def _service(request: StrictRequest) -> VmService:
    service: VmService = request.app.state.service
    return service


def _vm(text: str) -> UUID:
    try:
        return parse_uuid(text)
    except InvalidIdError:
        # Whatever is no id names no VM: the same answer as for one that is missing.
        raise no_such_vm() from None


def _wrong(field: str, message: str) -> RefusedError:
    return RefusedError(
        ErrorCode.BAD_REQUEST,
        f"{field}: {message}",
        fields=(FieldProblem(field=field, message=message),),
    )


def _query_id(field: str, text: str) -> UUID:
    try:
        return parse_uuid(text)
    except InvalidIdError as error:
        raise _wrong(field, str(error)) from None


def _wait_s(prefer: str) -> float:
    match = _WAIT.search(prefer)
    return min(float(match[1]), MAX_WAIT_S) if match else 0.0


def _mutation(outcome: Outcome, wait_s: float, done_status: int) -> Response[VmAndOperation]:
    headers = {"Location": f"/v1/operations/{outcome.body.operation.operation_id}"}
    if wait_s > 0:
        headers["Preference-Applied"] = f"wait={wait_s:.0f}"
    if outcome.finished and done_status == 201:
        headers["Location"] = f"/v1/vms/{outcome.body.vm.vm_id}"
    return _json(outcome.body, done_status if outcome.finished else 202, headers)


def _json(
    body: msgspec.Struct, status: int = 200, headers: dict[str, str] | None = None
) -> Response[Any]:
    return Response(
        encode(body), status_code=status, headers=headers, media_type="application/json"
    )


@post("/vms", opt={BODY: CreateVmRequest}, summary="Create a VM", status_code=202)
async def create_vm(
    request: StrictRequest, data: JSONBody[CreateVmRequest], prefer: Prefer = ""
) -> Response[VmAndOperation]:
    """Place a VM; 201 once it is there, 202 while it is being made."""
    wait_s = _wait_s(prefer)
    outcome = await _service(request).create(_who(request), data, wait_s)
    return _mutation(outcome, wait_s, 201)


@get("/vms", summary="List VMs")
async def list_vms(
    request: StrictRequest,
    limit: Limit = 100,
    cursor: Cursor = "",
    vm_state: State = None,
) -> Response[VmList]:
    """VMs in the order in which they were made."""
    after = _query_id("cursor", cursor) if cursor else None
    return _json(_service(request).page(_who(request), after=after, limit=limit, state=vm_state))


@get("/vms/{vm_id:str}", summary="Look at a VM")
async def get_vm(request: StrictRequest, vm_id: Id) -> Response[VmView]:
    """One VM."""
    return _json(_service(request).get(_who(request), _vm(vm_id)))


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
        raise _wrong("tail_bytes", "give it or offset, not both")
    chunk = await _service(request).console(
        _who(request), _vm(vm_id), offset=offset, tail_bytes=tail_bytes, limit_bytes=limit
    )
    if request.accept.best_match(["application/json", "text/plain"]) != "text/plain":
        return _json(chunk)
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
    wait_s = _wait_s(prefer)
    outcome = await _service(request).act(
        _who(request), _vm(vm_id), verb, grace_s=grace_s, wait_s=wait_s
    )
    return _mutation(outcome, wait_s, 200)


@delete("/vms/{vm_id:str}", summary="Delete a VM", status_code=202)
async def delete_vm(
    request: StrictRequest, vm_id: Id, prefer: Prefer = ""
) -> Response[VmAndOperation]:
    """End the VM if it runs, and free all it holds."""
    return await _act(request, vm_id, "delete", prefer)


@post("/vms/{vm_id:str}/boot", summary="Boot a VM", status_code=202)
async def boot_vm(
    request: StrictRequest, vm_id: Id, prefer: Prefer = ""
) -> Response[VmAndOperation]:
    """Start the VM: a new incarnation."""
    return await _act(request, vm_id, "boot", prefer)


@post("/vms/{vm_id:str}/pause", summary="Pause a VM", status_code=202)
async def pause_vm(
    request: StrictRequest, vm_id: Id, prefer: Prefer = ""
) -> Response[VmAndOperation]:
    """Stop the vCPUs; memory stays allocated and billed."""
    return await _act(request, vm_id, "pause", prefer)


@post("/vms/{vm_id:str}/resume", summary="Resume a VM", status_code=202)
async def resume_vm(
    request: StrictRequest, vm_id: Id, prefer: Prefer = ""
) -> Response[VmAndOperation]:
    """Let a paused VM go on."""
    return await _act(request, vm_id, "resume", prefer)


@post(
    "/vms/{vm_id:str}/shutdown",
    opt={BODY: ShutdownRequest},
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
    "/vms/{vm_id:str}/reboot", opt={BODY: ShutdownRequest}, summary="Reboot a VM", status_code=202
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


@get("/operations/{operation_id:str}", summary="Look at an operation")
async def get_operation(request: StrictRequest, operation_id: Id) -> Response[OperationView]:
    """A command and how far it has come."""
    try:
        wanted = parse_uuid(operation_id)
    except InvalidIdError:
        raise RefusedError(ErrorCode.NOT_FOUND, "There is no such operation.") from None
    return _json(await _service(request).operation(_who(request), wanted))


@get("/usage", summary="Usage in a window of time")
async def get_usage(
    request: StrictRequest, start: Instant = "", end: Instant = "", vm_ids: VmIds = None
) -> Response[UsageReport]:
    """What the customer's VMs have used in `[start, end)`."""
    today = utc_now().replace(hour=0, minute=0, second=0, microsecond=0)
    begin = _instant("start", start) if start else today
    until = _instant("end", end) if end else today + timedelta(days=1)
    if begin >= until:
        raise _wrong("end", "must come after start")
    wanted = tuple(_query_id("vm_id", text) for text in vm_ids or ())
    if len(wanted) > 1000:
        raise _wrong("vm_id", "at most 1000 of them")
    return _json(await _service(request).usage(_who(request), begin, until, wanted))


def _instant(field: str, text: str) -> Timestamp:
    try:
        return msgspec.convert(text, Timestamp)
    except msgspec.ValidationError:
        raise _wrong(
            field, "must be a time as in RFC 3339, with offset: 2026-01-31T00:00:00Z"
        ) from None


@get("/whoami", summary="What the token says")
async def whoami(request: StrictRequest) -> Response[WhoAmI]:
    """Subject, customer and scopes of the token."""
    who = _who(request)
    return _json(
        WhoAmI(subject=who.subject, customer_id=who.customer_id, scopes=tuple(sorted(who.scopes)))
    )


def router() -> Router:
    """All routes of version 1, behind the guard."""
    return Router(
        "/v1",
        guards=[authenticated],
        route_handlers=[
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
            get_operation,
            get_usage,
            whoami,
        ],
    )
