"""Every call of the API as data: what is sent, and what the answer means. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Generic, TypeVar
from uuid import UUID, uuid4

import httpx
import msgspec

from decisec.sdk.errors import ApiError, UnexpectedAnswerError, error_of
from schemas.api import (
    CreateVmRequest,
    ImageList,
    OperationList,
    OperationView,
    Problem,
    RestoreRequest,
    ShutdownRequest,
    SnapshotList,
    SnapshotRequest,
    SnapshotView,
    VmAndOperation,
    VmList,
    VmPatch,
    VmView,
)
from schemas.audit_log import AuditPage
from schemas.consoles import ConsoleChunk
from schemas.hosts import OperationStatus
from schemas.idempotency import IDEMPOTENCY_HEADER
from schemas.ids import token
from schemas.network_checks import CHECK_S, NetworkCheck
from schemas.network_peers import PeerList, PeerState, PeerView
from schemas.quotas import QuotaView
from schemas.usage import UsageReport
from schemas.vms import SnapshotKind, VmState

MAX_WAIT_S = 60
T = TypeVar("T")


class WhoAmI(msgspec.Struct, frozen=True, kw_only=True):
    """What the API reads from the token."""

    subject: str
    customer_id: str
    scopes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request.

    Attributes:
        answer: Type of a good answer's body.
        wait_s: How long the API itself may take on purpose.
    """

    method: str
    path: str
    answer: type[T]
    params: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    wait_s: float = 0.0

    @property
    def repeatable(self) -> bool:
        """Whether doing it twice is as good as once: a read, or a mutation with a key."""
        return self.method == "GET" or IDEMPOTENCY_HEADER in self.headers


def decode(call: Call[T], response: httpx.Response) -> T:
    """The answer's body.

    Raises:
        ApiError: The API refused, or the answer makes no sense.
    """
    if response.is_success:
        try:
            return msgspec.json.decode(response.content, type=call.answer)
        except msgspec.DecodeError as error:
            raise _unexpected(response, str(error)) from error
    raise refusal(response)


def refusal(response: httpx.Response) -> ApiError:
    """What an answer that is no success says."""
    try:
        problem = msgspec.json.decode(response.content, type=Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _unexpected(response, "no problem+json")
    return error_of(problem, response.status_code, retry_after_s(response))


def retry_after_s(response: httpx.Response) -> float | None:
    """How long to wait before the next try, if the answer says so in seconds."""
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdigit() else None


def _unexpected(response: httpx.Response, why: str) -> UnexpectedAnswerError:
    problem = Problem(
        type="about:blank",
        title="Unexpected answer",
        status=response.status_code,
        code="unexpected_answer",
        detail=f"{response.request.url} does not answer like this API: {why}",
    )
    return UnexpectedAnswerError(problem, response.status_code)


def create_vm(request: CreateVmRequest, wait_s: float, key: str = "") -> Call[VmAndOperation]:
    """`POST /v1/vms`; `key` is its idempotency key, a random one by default."""
    # Without what stands at its default: a gateway that is older than this does not know all of it.
    plain = CreateVmRequest(image=request.image)
    asked = {
        name: value
        for name in request.__struct_fields__
        if (value := getattr(request, name)) != getattr(plain, name) or name == "image"
    }
    return _mutation("POST", "/v1/vms", wait_s, msgspec.json.encode(asked), key)


@dataclass(frozen=True, slots=True)
class VmFilter:
    """Which VMs a list is to hold, and in which order.

    Attributes:
        labels: All of these; a value of None means that the label is there, whatever its value.
        host: For operators only.
        sort: `created_at` or `name`; with `-` before it the other way round.
    """

    state: VmState | None = None
    labels: Mapping[str, str | None] = field(default_factory=dict)
    image: str = ""
    name: str = ""
    host: str = ""
    sort: str = ""


def list_vms(wanted: VmFilter, page_size: int, cursor: str) -> Call[VmList]:
    """`GET /v1/vms`: one page."""
    params = [("limit", str(page_size))]
    for name, value in wanted.labels.items():
        params.append(("label", name if value is None else f"{name}:{value}"))
    params.extend(
        _given(
            cursor=cursor,
            state=wanted.state.value if wanted.state is not None else "",
            image=wanted.image,
            name=wanted.name,
            host=wanted.host,
            sort=wanted.sort,
        )
    )
    return Call("GET", "/v1/vms", VmList, params=tuple(params))


def patch_vm(vm_id: UUID | str, patch: VmPatch, generation: int | None) -> Call[VmView]:
    """`PATCH /v1/vms/{vm_id}`."""
    headers = {
        IDEMPOTENCY_HEADER: uuid4().hex,
        "Content-Type": "application/merge-patch+json",
    }
    if generation is not None:
        headers["If-Match"] = f'"{generation}"'
    body = msgspec.json.encode(patch)
    return Call("PATCH", f"/v1/vms/{uuid_of(vm_id)}", VmView, body=body, headers=headers)


def snapshot_vm(vm_id: UUID | str, kind: SnapshotKind, wait_s: float) -> Call[VmAndOperation]:
    """`POST /v1/vms/{vm_id}/snapshot`."""
    body = msgspec.json.encode(SnapshotRequest(kind=kind))
    return _mutation("POST", f"/v1/vms/{uuid_of(vm_id)}/snapshot", wait_s, body)


def restore_vm(vm_id: UUID | str, snapshot_id: UUID | str, wait_s: float) -> Call[VmAndOperation]:
    """`POST /v1/vms/{vm_id}/restore`."""
    body = msgspec.json.encode(RestoreRequest(snapshot_id=uuid_of(snapshot_id)))
    return _mutation("POST", f"/v1/vms/{uuid_of(vm_id)}/restore", wait_s, body)


def list_snapshots(vm_id: UUID | str | None, page_size: int, cursor: str) -> Call[SnapshotList]:
    """`GET /v1/snapshots`: one page."""
    given = _given(cursor=cursor, vm_id="" if vm_id is None else str(uuid_of(vm_id)))
    params = (("limit", str(page_size)), *given)
    return Call("GET", "/v1/snapshots", SnapshotList, params=params)


def get_snapshot(snapshot_id: UUID | str) -> Call[SnapshotView]:
    """`GET /v1/snapshots/{snapshot_id}`."""
    return Call("GET", f"/v1/snapshots/{uuid_of(snapshot_id)}", SnapshotView)


def delete_snapshot(snapshot_id: UUID | str, wait_s: float) -> Call[VmAndOperation]:
    """`DELETE /v1/snapshots/{snapshot_id}`."""
    return _mutation("DELETE", f"/v1/snapshots/{uuid_of(snapshot_id)}", wait_s)


def list_operations(
    vm_id: UUID | str | None, status: OperationStatus | None, page_size: int, cursor: str
) -> Call[OperationList]:
    """`GET /v1/operations`: one page."""
    given = _given(
        cursor=cursor,
        vm_id="" if vm_id is None else str(uuid_of(vm_id)),
        status=status.value if status is not None else "",
    )
    params = (("limit", str(page_size)), *given)
    return Call("GET", "/v1/operations", OperationList, params=params)


def list_peers(state: PeerState | None, page_size: int, cursor: str) -> Call[PeerList]:
    """`GET /v1/network/peers`: one page."""
    given = _given(cursor=cursor, state=state.value if state is not None else "")
    return Call("GET", "/v1/network/peers", PeerList, params=(("limit", str(page_size)), *given))


def add_peer(customer_id: str) -> Call[PeerView]:
    """`PUT /v1/network/peers/{peer_id}`."""
    return _peering("PUT", customer_id)


def remove_peer(customer_id: str) -> Call[PeerView]:
    """`DELETE /v1/network/peers/{peer_id}`."""
    return _peering("DELETE", customer_id)


def list_images() -> Call[ImageList]:
    """`GET /v1/images`."""
    return Call("GET", "/v1/images", ImageList)


def get_vm(vm_id: UUID | str) -> Call[VmView]:
    """`GET /v1/vms/{vm_id}`."""
    return Call("GET", f"/v1/vms/{uuid_of(vm_id)}", VmView)


def vm_console(
    vm_id: UUID | str, offset: int | None, tail_bytes: int | None, limit_bytes: int
) -> Call[ConsoleChunk]:
    """`GET /v1/vms/{vm_id}/console`."""
    params = [("limit", str(limit_bytes))]
    if offset is not None:
        params.append(("offset", str(offset)))
    if tail_bytes is not None:
        params.append(("tail_bytes", str(tail_bytes)))
    return Call("GET", f"/v1/vms/{uuid_of(vm_id)}/console", ConsoleChunk, params=tuple(params))


def check_network(vm_id: UUID | str) -> Call[NetworkCheck]:
    """`POST /v1/vms/{vm_id}/network-check`."""
    path = f"/v1/vms/{uuid_of(vm_id)}/network-check"
    return Call("POST", path, NetworkCheck, wait_s=CHECK_S)


def verb(vm_id: UUID | str, name: str, wait_s: float) -> Call[VmAndOperation]:
    """`POST /v1/vms/{vm_id}/{verb}`."""
    return _mutation("POST", f"/v1/vms/{uuid_of(vm_id)}/{name}", wait_s)


def stop_verb(vm_id: UUID | str, name: str, grace_s: float, wait_s: float) -> Call[VmAndOperation]:
    """`POST /v1/vms/{vm_id}/shutdown` or `/reboot`."""
    body = msgspec.json.encode(ShutdownRequest(grace_s=grace_s))
    return _mutation("POST", f"/v1/vms/{uuid_of(vm_id)}/{name}", wait_s, body)


def delete_vm(vm_id: UUID | str, wait_s: float) -> Call[VmAndOperation]:
    """`DELETE /v1/vms/{vm_id}`."""
    return _mutation("DELETE", f"/v1/vms/{uuid_of(vm_id)}", wait_s)


def get_operation(operation_id: UUID | str) -> Call[OperationView]:
    """`GET /v1/operations/{operation_id}`."""
    return Call("GET", f"/v1/operations/{uuid_of(operation_id)}", OperationView)


def usage(
    start: datetime | None, end: datetime | None, vm_ids: Iterable[UUID | str]
) -> Call[UsageReport]:
    """`GET /v1/usage`."""
    params = _window(start, end)
    params.extend(("vm_id", str(uuid_of(vm_id))) for vm_id in vm_ids)
    return Call("GET", "/v1/usage", UsageReport, params=tuple(params))


def audit(
    start: datetime | None, end: datetime | None, page_size: int, cursor: str
) -> Call[AuditPage]:
    """`GET /v1/audit`: one page."""
    params = [("limit", str(page_size)), *_window(start, end)]
    if cursor:
        params.append(("cursor", cursor))
    return Call("GET", "/v1/audit", AuditPage, params=tuple(params))


def quotas() -> Call[QuotaView]:
    """`GET /v1/quotas`."""
    return Call("GET", "/v1/quotas", QuotaView)


def whoami() -> Call[WhoAmI]:
    """`GET /v1/whoami`."""
    return Call("GET", "/v1/whoami", WhoAmI)


def _mutation(
    method: str, path: str, wait_s: float, body: bytes = b"", key: str = ""
) -> Call[VmAndOperation]:
    # With a key, so that it can be sent again when its answer was lost.
    headers = {IDEMPOTENCY_HEADER: key or uuid4().hex}
    # The API waits whole seconds; rounding up keeps what was asked for.
    wait = min(MAX_WAIT_S, int(-(-wait_s // 1)))
    if wait > 0:
        headers["Prefer"] = f"wait={wait}"
    if body:
        headers["Content-Type"] = "application/json"
    return Call(method, path, VmAndOperation, body=body, headers=headers, wait_s=float(wait))


def _peering(method: str, customer_id: str) -> Call[PeerView]:
    headers = {IDEMPOTENCY_HEADER: uuid4().hex}
    return Call(method, f"/v1/network/peers/{token(customer_id)}", PeerView, headers=headers)


def _window(start: datetime | None, end: datetime | None) -> list[tuple[str, str]]:
    given = (("start", start), ("end", end))
    return [(name, moment(name, value)) for name, value in given if value is not None]


def _given(**params: str) -> list[tuple[str, str]]:
    return [(name, value) for name, value in params.items() if value]


def moment(name: str, value: datetime) -> str:
    """A time as the API takes it.

    Raises:
        ValueError: It has no zone.
    """
    if value.tzinfo is None:
        raise ValueError(f"{name} needs a time zone")
    return value.isoformat()


def uuid_of(value: UUID | str) -> UUID:
    """The id of something.

    Raises:
        ValueError: It is none.
    """
    # A path is only ever made of a parsed UUID, so no id can lead anywhere else.
    return value if isinstance(value, UUID) else UUID(value)
