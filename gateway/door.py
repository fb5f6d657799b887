"""The door on the bus: `vm.req.<customer>.<verb>`, the same answers as over HTTP.

Whoever may publish on a customer's subject speaks for that customer: the server's permissions
are the authentication here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import msgspec
import structlog
from opentelemetry.trace import SpanKind

from gateway.auth import Principal, Scope
from gateway.background import Background
from gateway.errors import RefusedError, unavailable
from gateway.images import ImageService
from gateway.listing import Sort, VmQuery
from gateway.service import MAX_WAIT_S, VERBS, VmService
from gateway.snapshots import SnapshotService
from runtime.bus import Bus, Message
from runtime.errors import TransientError
from runtime.telemetry import span
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
from schemas.codec import decoder, encode
from schemas.consoles import MAX_CHUNK_BYTES, ChunkLimit, ConsoleChunk
from schemas.errors import ErrorCode, ErrorInfo, InvalidIdError, MalformedMessageError
from schemas.hosts import OperationStatus
from schemas.ids import CommandId, ImageName, VmId
from schemas.subjects import customer_of
from schemas.units import Counter
from schemas.vms import SnapshotKind, VmState

_log = structlog.get_logger("decisec.door")

QUEUE = "gateway"
SUBJECT = "vm.req.*.*"
_MAX_OPEN = 256

Wait = Annotated[float, msgspec.Meta(ge=0, le=MAX_WAIT_S)]
PageLimit = Annotated[int, msgspec.Meta(ge=1, le=1000)]


class CreateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """On `vm.req.<customer>.create`."""

    vm: CreateVmRequest
    wait_s: Wait = 0.0


class VmRequest(msgspec.Struct, frozen=True, kw_only=True):
    """On `vm.req.<customer>.<any other verb>`; `get` ignores all but `vm_id`."""

    vm_id: VmId
    wait_s: Wait = 0.0
    grace_s: Annotated[float, msgspec.Meta(ge=0, le=300)] = 10.0


class ConsoleRequest(msgspec.Struct, frozen=True, kw_only=True):
    """On `vm.req.<customer>.console`. See `ConsoleQuery`."""

    vm_id: VmId
    offset: Counter | None = None
    tail_bytes: Counter | None = None
    limit_bytes: ChunkLimit = MAX_CHUNK_BYTES


class ListRequest(msgspec.Struct, frozen=True, kw_only=True):
    """On `vm.req.<customer>.list`. See `VmQuery`.

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


class PatchRequest(msgspec.Struct, frozen=True, kw_only=True):
    """On `vm.req.<customer>.patch`.

    Attributes:
        patch: A JSON merge patch.
        generation: Only if the VM still stands at this one.
    """

    vm_id: VmId
    patch: VmPatch
    generation: Annotated[int, msgspec.Meta(ge=1)] | None = None


class OperationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """On `vm.req.<customer>.operation`."""

    operation_id: CommandId


class OperationsRequest(msgspec.Struct, frozen=True, kw_only=True):
    """On `vm.req.<customer>.operations`."""

    vm_id: VmId | None = None
    status: OperationStatus | None = None
    cursor: str = ""
    limit: PageLimit = 100


class SnapshotVmRequest(msgspec.Struct, frozen=True, kw_only=True):
    """On `vm.req.<customer>.snapshot`."""

    vm_id: VmId
    kind: SnapshotKind = SnapshotKind.FULL
    wait_s: Wait = 0.0


class RestoreVmRequest(msgspec.Struct, frozen=True, kw_only=True):
    """On `vm.req.<customer>.restore`."""

    vm_id: VmId
    snapshot_id: VmId
    wait_s: Wait = 0.0


class SnapshotsRequest(msgspec.Struct, frozen=True, kw_only=True):
    """On `vm.req.<customer>.snapshots`."""

    vm_id: VmId | None = None
    cursor: str = ""
    limit: PageLimit = 100


class OneSnapshotRequest(msgspec.Struct, frozen=True, kw_only=True):
    """On `vm.req.<customer>.snapshot-get` and `.snapshot-delete`; `wait_s` is for the latter."""

    snapshot_id: VmId
    wait_s: Wait = 0.0


class ImagesRequest(msgspec.Struct, frozen=True, kw_only=True):
    """On `vm.req.<customer>.images`: an empty object."""


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
    error: ErrorInfo | None = None


Decode = Callable[[bytes], Any]
Answer = Callable[[Principal, Any], Awaitable[Reply]]

CUSTOMER_SCOPES = frozenset(Scope) - {Scope.ADMIN}
"""What a customer may do on the bus: everything that customers may do."""


class Door:
    """Answers requests on the bus.

    Args:
        bus: The connection.
        service: Does the work.
        background: Holds requests that are being worked on.
        snapshots: Does the work on snapshots.
        images: Knows the images.
    """

    def __init__(
        self,
        bus: Bus,
        service: VmService,
        background: Background,
        *,
        snapshots: SnapshotService,
        images: ImageService,
    ) -> None:
        self._bus = bus
        self._service = service
        self._background = background
        self._snapshots = snapshots
        self._images = images
        self._open = 0
        self._verbs: dict[str, tuple[Decode, Answer]] = {
            **{verb: (decoder(VmRequest), self._act(verb)) for verb in VERBS},
            "create": (decoder(CreateRequest), self._create),
            "get": (decoder(VmRequest), self._get),
            "list": (decoder(ListRequest), self._list),
            "patch": (decoder(PatchRequest), self._patch),
            "console": (decoder(ConsoleRequest), self._console),
            "operation": (decoder(OperationRequest), self._operation),
            "operations": (decoder(OperationsRequest), self._operations),
            "snapshot": (decoder(SnapshotVmRequest), self._snapshot),
            "restore": (decoder(RestoreVmRequest), self._restore),
            "snapshots": (decoder(SnapshotsRequest), self._list_snapshots),
            "snapshot-get": (decoder(OneSnapshotRequest), self._get_snapshot),
            "snapshot-delete": (decoder(OneSnapshotRequest), self._delete_snapshot),
            "images": (decoder(ImagesRequest), self._list_images),
        }

    @property
    def verbs(self) -> frozenset[str]:
        """What can be asked for."""
        return frozenset(self._verbs)

    async def run(self) -> None:
        """Answer until cancelled."""
        subscription = await self._bus.subscribe(SUBJECT, self._take, queue=QUEUE)
        try:
            await asyncio.Event().wait()
        finally:
            if self._bus.connected:
                await subscription.unsubscribe()

    async def _take(self, message: Message) -> bytes | None:
        if not message.reply:
            return None
        if self._open >= _MAX_OPEN:
            return encode(Reply(error=unavailable().info))
        try:
            self._background.require_open()
            # A request may wait for its operation; the next one must not wait for it.
            self._background.spawn(self._answer(message), name="bus-request")
        except RefusedError as error:
            return encode(Reply(error=error.info))
        self._open += 1
        return None

    async def _answer(self, message: Message) -> None:
        verb = message.subject.rpartition(".")[2]
        known = verb if verb in self._verbs else "unknown"
        try:
            with span(f"process vm.req.*.{known}", kind=SpanKind.SERVER, parent=message.headers):
                reply = await self._reply(message.subject, known, message.data)
                await self._bus.publish(message.reply, encode(reply))
        except TransientError as error:
            _log.warning("reply.lost", subject=message.subject, error=str(error))
        finally:
            self._open -= 1

    async def _reply(self, subject: str, verb: str, data: bytes) -> Reply:
        try:
            return await self._do(customer_of(subject), verb, data)
        except RefusedError as error:
            return Reply(error=error.info)
        except TransientError as error:
            _log.warning("request.deferred", error=str(error))
            return Reply(error=unavailable().info)
        except (MalformedMessageError, InvalidIdError) as error:
            return Reply(error=ErrorInfo(code=ErrorCode.BAD_REQUEST, message=str(error)))
        except Exception:  # noqa: BLE001 - a defect in one request must not end the others
            _log.exception("request.crashed")
            return Reply(
                error=ErrorInfo(code=ErrorCode.INTERNAL, message="Something went wrong here.")
            )

    async def _do(self, customer_id: str, verb: str, data: bytes) -> Reply:
        who = Principal("bus", customer_id, CUSTOMER_SCOPES)
        found = self._verbs.get(verb)
        if found is None:
            raise RefusedError(ErrorCode.BAD_REQUEST, f"There is no verb {verb!r}.")
        decode, answer = found
        return await answer(who, decode(data))

    def _act(self, verb: str) -> Answer:
        async def act(who: Principal, asked: VmRequest) -> Reply:
            outcome = await self._service.act(
                who,
                asked.vm_id,
                verb,
                grace_s=asked.grace_s if verb in ("shutdown", "reboot") else None,
                wait_s=asked.wait_s,
            )
            return Reply(result=outcome.body)

        return act

    async def _create(self, who: Principal, asked: CreateRequest) -> Reply:
        return Reply(result=(await self._service.create(who, asked.vm, asked.wait_s)).body)

    async def _get(self, who: Principal, asked: VmRequest) -> Reply:
        return Reply(vm=self._service.get(who, asked.vm_id))

    async def _console(self, who: Principal, asked: ConsoleRequest) -> Reply:
        chunk = await self._service.console(
            who,
            asked.vm_id,
            offset=asked.offset,
            tail_bytes=asked.tail_bytes,
            limit_bytes=asked.limit_bytes,
        )
        return Reply(console=chunk)

    async def _list(self, who: Principal, asked: ListRequest) -> Reply:
        query = VmQuery(
            state=asked.state,
            labels=asked.labels,
            image=asked.image,
            name=asked.name or None,
            sort=asked.sort,
        )
        page = await self._service.page(who, query, cursor=asked.cursor, limit=asked.limit)
        return Reply(vms=page)

    async def _patch(self, who: Principal, asked: PatchRequest) -> Reply:
        only_at = None if asked.generation is None else frozenset({asked.generation})
        return Reply(vm=await self._service.patch(who, asked.vm_id, asked.patch, only_at))

    async def _operation(self, who: Principal, asked: OperationRequest) -> Reply:
        return Reply(operation=await self._service.operation(who, asked.operation_id))

    async def _operations(self, who: Principal, asked: OperationsRequest) -> Reply:
        page = self._service.operation_page(
            who, vm_id=asked.vm_id, status=asked.status, cursor=asked.cursor, limit=asked.limit
        )
        return Reply(operations=page)

    async def _snapshot(self, who: Principal, asked: SnapshotVmRequest) -> Reply:
        outcome = await self._snapshots.take(who, asked.vm_id, asked.kind, asked.wait_s)
        return Reply(result=outcome.body)

    async def _restore(self, who: Principal, asked: RestoreVmRequest) -> Reply:
        outcome = await self._snapshots.restore(who, asked.vm_id, asked.snapshot_id, asked.wait_s)
        return Reply(result=outcome.body)

    async def _list_snapshots(self, who: Principal, asked: SnapshotsRequest) -> Reply:
        page = self._snapshots.page(who, vm_id=asked.vm_id, cursor=asked.cursor, limit=asked.limit)
        return Reply(snapshots=page)

    async def _get_snapshot(self, who: Principal, asked: OneSnapshotRequest) -> Reply:
        return Reply(snapshot=self._snapshots.get(who, asked.snapshot_id))

    async def _delete_snapshot(self, who: Principal, asked: OneSnapshotRequest) -> Reply:
        outcome = await self._snapshots.discard(who, asked.snapshot_id, asked.wait_s)
        return Reply(result=outcome.body)

    async def _list_images(self, who: Principal, asked: ImagesRequest) -> Reply:
        del asked
        return Reply(images=self._images.all(who))
