"""Examples in the OpenAPI document, made of the messages themselves so that they are right."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from uuid import UUID

import msgspec
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIResponse, Operation, RequestBody

from gateway.bodies import MERGE_PATCH
from schemas.api import (
    ImageList,
    ImageView,
    OperationList,
    OperationView,
    RestoreRequest,
    SnapshotList,
    SnapshotRequest,
    SnapshotView,
    VmAndOperation,
    VmList,
    VmPatch,
    VmView,
)
from schemas.hosts import OperationStatus
from schemas.network_peers import PeerList, PeerState, PeerView
from schemas.vms import SnapshotKind, VmSpec, VmState

_AT = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
_VM = UUID("019c1372-8b40-7c51-9a56-6d1b2f0e4c11")
_SNAPSHOT = UUID("019c1375-22f8-7a1e-8d0c-90b6a2f7d3e5")
_OPERATION = UUID("019c1375-22f9-7f64-b3a1-5c0de8a94b72")
_SPEC = VmSpec(image="tiny", vcpus=2, memory_mib=512, disk_mib=1024, labels={"team": "web"})

_VIEW = VmView(
    vm_id=_VM,
    customer_id="acme",
    name="web-1",
    state=VmState.RUNNING,
    spec=_SPEC,
    host_id="h1",
    incarnation=1,
    driver="firecracker",
    created_at=_AT,
    started_at=_AT + timedelta(seconds=2),
    generation=3,
)
_SHOT = SnapshotView(
    snapshot_id=_SNAPSHOT,
    vm_id=_VM,
    kind=SnapshotKind.FULL,
    image="tiny",
    vcpus=2,
    memory_mib=512,
    disk_mib=1024,
    created_at=_AT + timedelta(minutes=3),
)


def _operation(verb: str, **fields: Any) -> OperationView:
    begun = _AT + timedelta(minutes=3)
    return OperationView(
        operation_id=_OPERATION,
        vm_id=_VM,
        verb=verb,
        status=OperationStatus.PENDING,
        created_at=begun,
        deadline=begun + timedelta(seconds=60),
        **fields,
    )


def _begun(verb: str, **fields: Any) -> VmAndOperation:
    return VmAndOperation(vm=_VIEW, operation=_operation(verb, **fields))


@dataclass
class _Exemplified(Operation):
    """A route whose description shows an answer, and a body where it takes one."""

    shown_answer: ClassVar[msgspec.Struct]
    shown_body: ClassVar[Any] = None
    body_media: ClassVar[tuple[str, ...]] = ("application/json",)

    def __post_init__(self) -> None:
        """Add the examples."""
        for status in ("200", "201", "202"):
            answer = (self.responses or {}).get(status)
            if isinstance(answer, OpenAPIResponse) and answer.content is not None:
                for media in answer.content.values():
                    media.example = msgspec.to_builtins(self.shown_answer)
        if self.shown_body is not None and isinstance(self.request_body, RequestBody):
            (given,) = self.request_body.content.values()
            self.request_body.content = {
                name: OpenAPIMediaType(schema=given.schema, example=self.shown_body)
                for name in self.body_media
            }


def show(answer: msgspec.Struct, body: Any = None, *media: str) -> type[Operation]:
    """The class of a route whose description shows this answer and this body."""
    shown = msgspec.to_builtins(body) if isinstance(body, msgspec.Struct) else body
    fields = {"shown_answer": answer, "shown_body": shown, "__doc__": _Exemplified.__doc__}
    if media:
        fields["body_media"] = media
    return type("Exemplified", (_Exemplified,), fields)


vm = show(_VIEW)
vm_list = show(VmList(vms=(_VIEW,), next_cursor=""))
patch = show(
    _VIEW,
    VmPatch(name="web-1", labels={"team": "web", "stage": None}),
    MERGE_PATCH,
    "application/json",
)
snapshot = show(_begun("snapshot", snapshot_id=_SNAPSHOT), SnapshotRequest())
restore = show(_begun("restore", snapshot_id=_SNAPSHOT), RestoreRequest(snapshot_id=_SNAPSHOT))
discard = show(_begun("discard", snapshot_id=_SNAPSHOT))
snapshot_view = show(_SHOT)
snapshot_list = show(SnapshotList(snapshots=(_SHOT,)))
operation = show(_operation("snapshot", snapshot_id=_SNAPSHOT))
operation_list = show(OperationList(operations=(_operation("snapshot", snapshot_id=_SNAPSHOT),)))
image_list = show(ImageList(images=(ImageView(name="linux"), ImageView(name="tiny"))))

_PEER = PeerView(customer_id="globex", state=PeerState.AGREED, since=_AT)
peer = show(_PEER)
former_peer = show(PeerView(customer_id="globex", state=PeerState.ASKED, since=_AT))
peer_list = show(PeerList(peers=(_PEER,)))
