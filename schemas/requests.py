"""What is asked and answered on the bus, on `vm.req.<customer>.<verb>`: the API without HTTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Annotated, NamedTuple

import msgspec

from schemas.api import (
    CreateVmRequest,
    ImageList,
    OperationList,
    OperationView,
    SnapshotList,
    SnapshotView,
    VmAndOperation,
    VmList,
    VmName,
    VmPatch,
    VmView,
)
from schemas.audit_log import MAX_AUDIT_PAGE, AuditPage, Cursor
from schemas.codec import decoder
from schemas.consoles import MAX_CHUNK_BYTES, ChunkLimit, ConsoleChunk
from schemas.errors import ErrorInfo
from schemas.event_lists import MAX_EVENT_VMS, MAX_EVENTS, EventList, EventType
from schemas.hosts import OperationStatus
from schemas.idempotency import KEY_PATTERN, MAX_KEY
from schemas.ids import CommandId, CustomerId, ImageName, VmId
from schemas.network_checks import NetworkCheck
from schemas.network_peers import MAX_PEER_PAGE, PeerList, PeerState, PeerView
from schemas.quotas import QuotaView
from schemas.series import MAX_POINTS, MAX_SERIES_VMS, Metric, SeriesReport
from schemas.units import Counter
from schemas.usage import UsageReport
from schemas.vms import SnapshotKind, Timestamp, VmState

MAX_WAIT_S = 60.0
"""The longest that a request waits for the end of what it has begun."""

Wait = Annotated[float, msgspec.Meta(ge=0, le=MAX_WAIT_S)]
Key = Annotated[str, msgspec.Meta(pattern=f"{KEY_PATTERN}|^$(?!\\n)", max_length=MAX_KEY)]
"""Empty for none, as the messages below are when they are encoded."""

PageLimit = Annotated[int, msgspec.Meta(ge=1, le=1000)]


class Sort(StrEnum):
    """Orders of a list; `-` is the other way round."""

    CREATED = "created_at"
    NEWEST = "-created_at"
    NAME = "name"
    NAME_BACK = "-name"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What every request may carry.

    Attributes:
        wait_s: How long a mutation waits for its end.
        idempotency_key: The same mutation with the same key is done once; reads ignore it.
    """

    wait_s: Wait = 0.0
    idempotency_key: Key = ""


class CreateRequest(Request, frozen=True, kw_only=True):
    """On `vm.req.<customer>.create`."""

    vm: CreateVmRequest


class VmRequest(Request, frozen=True, kw_only=True):
    """On `vm.req.<customer>.<any other verb>`; `get` ignores all but `vm_id`."""

    vm_id: VmId
    grace_s: Annotated[float, msgspec.Meta(ge=0, le=300)] = 10.0


class ConsoleRequest(Request, frozen=True, kw_only=True):
    """On `vm.req.<customer>.console`. See `ConsoleQuery`."""

    vm_id: VmId
    offset: Counter | None = None
    tail_bytes: Counter | None = None
    limit_bytes: ChunkLimit = MAX_CHUNK_BYTES


class CheckNetworkRequest(Request, frozen=True, kw_only=True):
    """On `vm.req.<customer>.check-network`: probes are sent to the VM."""

    vm_id: VmId


class ListRequest(Request, frozen=True, kw_only=True):
    """On `vm.req.<customer>.list`. What is left out is not asked for.

    Attributes:
        labels: Names, and values or null for any value.
        cursor: `next_cursor` of the page before.
    """

    state: VmState | None = None
    labels: Annotated[dict[str, str | None], msgspec.Meta(max_length=32)] = msgspec.field(
        default_factory=dict
    )
    image: ImageName | None = None
    name: VmName | None = None
    sort: Sort = Sort.CREATED
    cursor: str = ""
    limit: PageLimit = 100


class PatchRequest(Request, frozen=True, kw_only=True):
    """On `vm.req.<customer>.patch`.

    Attributes:
        patch: A JSON merge patch.
        generation: Only if the VM still stands at this one.
    """

    vm_id: VmId
    patch: VmPatch
    generation: Annotated[int, msgspec.Meta(ge=1)] | None = None


class OperationRequest(Request, frozen=True, kw_only=True):
    """On `vm.req.<customer>.operation`."""

    operation_id: CommandId


class OperationsRequest(Request, frozen=True, kw_only=True):
    """On `vm.req.<customer>.operations`."""

    vm_id: VmId | None = None
    status: OperationStatus | None = None
    cursor: str = ""
    limit: PageLimit = 100


class SnapshotVmRequest(Request, frozen=True, kw_only=True):
    """On `vm.req.<customer>.snapshot`."""

    vm_id: VmId
    kind: SnapshotKind = SnapshotKind.FULL


class RestoreVmRequest(Request, frozen=True, kw_only=True):
    """On `vm.req.<customer>.restore`."""

    vm_id: VmId
    snapshot_id: VmId


class SnapshotsRequest(Request, frozen=True, kw_only=True):
    """On `vm.req.<customer>.snapshots`."""

    vm_id: VmId | None = None
    cursor: str = ""
    limit: PageLimit = 100


class OneSnapshotRequest(Request, frozen=True, kw_only=True):
    """On `vm.req.<customer>.snapshot-get` and `.snapshot-delete`; `wait_s` is for the latter."""

    snapshot_id: VmId


class ImagesRequest(Request, frozen=True, kw_only=True):
    """On `vm.req.<customer>.images`: an empty object."""


class QuotasRequest(Request, frozen=True, kw_only=True):
    """On `vm.req.<customer>.quotas`: an empty object."""


class PeersRequest(Request, frozen=True, kw_only=True):
    """On `vm.req.<customer>.peers`."""

    state: PeerState | None = None
    cursor: str = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_PEER_PAGE)] = 100


class PeerRequest(Request, frozen=True, kw_only=True):
    """On `vm.req.<customer>.peer-add` and `.peer-remove`."""

    peer_id: CustomerId


class UsageRequest(Request, frozen=True, kw_only=True):
    """On `vm.req.<customer>.usage`: what is billed. See `UsageQuery`."""

    start: Timestamp
    end: Timestamp
    vm_ids: Annotated[tuple[VmId, ...], msgspec.Meta(max_length=1000)] = ()


class MetricsRequest(Request, frozen=True, kw_only=True):
    """On `vm.req.<customer>.metrics`: recent metrics as series. See `SeriesQuery`."""

    start: Timestamp
    end: Timestamp
    vm_ids: Annotated[tuple[VmId, ...], msgspec.Meta(min_length=1, max_length=MAX_SERIES_VMS)]
    points: Annotated[int, msgspec.Meta(ge=1, le=MAX_POINTS)] = 300
    step_ms: int | None = None
    metrics: tuple[Metric, ...] = ()


class EventsRequest(Request, frozen=True, kw_only=True):
    """On `vm.req.<customer>.events`: what has happened. See `EventsQuery`.

    Attributes:
        cursor: `next_cursor` of the page before.
    """

    start: Timestamp | None = None
    end: Timestamp | None = None
    vm_ids: Annotated[tuple[VmId, ...], msgspec.Meta(max_length=MAX_EVENT_VMS)] = ()
    types: Annotated[tuple[EventType, ...], msgspec.Meta(max_length=64)] = ()
    newest_first: bool = True
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_EVENTS)] = 100
    cursor: str = ""


class AuditRequest(Request, frozen=True, kw_only=True):
    """On `vm.req.<customer>.audit`: what was done and refused. See `AuditQuery`."""

    start: Timestamp
    end: Timestamp
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_AUDIT_PAGE)] = 100
    cursor: Cursor = ""


class Reply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Exactly one of these is set."""

    vm: VmView | None = None
    result: VmAndOperation | None = None
    console: ConsoleChunk | None = None
    vms: VmList | None = None
    operation: OperationView | None = None
    operations: OperationList | None = None
    snapshot: SnapshotView | None = None
    snapshots: SnapshotList | None = None
    images: ImageList | None = None
    quotas: QuotaView | None = None
    peers: PeerList | None = None
    peer: PeerView | None = None
    usage: UsageReport | None = None
    metrics: SeriesReport | None = None
    events: EventList | None = None
    audit: AuditPage | None = None
    network: NetworkCheck | None = None
    error: ErrorInfo | None = None


class Verb(NamedTuple):
    """One verb of the door.

    Attributes:
        request: The type of what is asked.
        answer: The field of `Reply` that is set, unless it is `error`.
        mutates: It may change something.
    """

    request: type[Request]
    answer: str
    mutates: bool


_READ, _MUTATION = False, True
REQUESTS: Mapping[str, Verb] = {
    "create": Verb(CreateRequest, "result", _MUTATION),
    **{
        verb: Verb(VmRequest, "result", _MUTATION)
        for verb in ("boot", "shutdown", "pause", "resume", "reboot", "delete")
    },
    "snapshot": Verb(SnapshotVmRequest, "result", _MUTATION),
    "restore": Verb(RestoreVmRequest, "result", _MUTATION),
    "snapshot-delete": Verb(OneSnapshotRequest, "result", _MUTATION),
    "patch": Verb(PatchRequest, "vm", _MUTATION),
    "check-network": Verb(CheckNetworkRequest, "network", _MUTATION),
    "get": Verb(VmRequest, "vm", _READ),
    "list": Verb(ListRequest, "vms", _READ),
    "console": Verb(ConsoleRequest, "console", _READ),
    "operation": Verb(OperationRequest, "operation", _READ),
    "operations": Verb(OperationsRequest, "operations", _READ),
    "snapshots": Verb(SnapshotsRequest, "snapshots", _READ),
    "snapshot-get": Verb(OneSnapshotRequest, "snapshot", _READ),
    "quotas": Verb(QuotasRequest, "quotas", _READ),
    "images": Verb(ImagesRequest, "images", _READ),
    "peers": Verb(PeersRequest, "peers", _READ),
    "peer-add": Verb(PeerRequest, "peer", _MUTATION),
    "peer-remove": Verb(PeerRequest, "peer", _MUTATION),
    "usage": Verb(UsageRequest, "usage", _READ),
    "metrics": Verb(MetricsRequest, "metrics", _READ),
    "events": Verb(EventsRequest, "events", _READ),
    "audit": Verb(AuditRequest, "audit", _READ),
}
"""Everything that can be asked at the door."""

decode_reply: Callable[[bytes], Reply] = decoder(Reply)
