"""The door on the bus: `vm.req.<customer>.<verb>`, the same answers as over HTTP.

Whoever may publish on a customer's subject speaks for that customer: the server's permissions
are the authentication here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from opentelemetry.trace import SpanKind

from gateway import acts
from gateway.acts import Act
from gateway.admission import Admission, lane_of
from gateway.auth import CUSTOMER_SCOPES, Principal
from gateway.background import Background
from gateway.door_reads import READS, DoorReads, Read
from gateway.door_words import action_of, info_of, target_of
from gateway.errors import RefusedError, unavailable
from gateway.idempotency import Keys, digest
from gateway.images import ImageService
from gateway.limits import Limits, class_of_verb
from gateway.listing import VmQuery
from gateway.operation_service import OperationService
from gateway.peers import PeerService
from gateway.problems import STATUS_OF
from gateway.service import VERBS, VmService
from gateway.snapshots import SnapshotService
from gateway.trail import Refusal, Trail
from runtime.bus import Bus, Message
from runtime.errors import TransientError
from runtime.telemetry import span, trace_id
from schemas.audit import OPERATOR
from schemas.codec import decoder, encode
from schemas.errors import ErrorCode, ErrorInfo, InvalidIdError
from schemas.idempotency import REPLAYED_HEADER, KeptAnswer
from schemas.requests import (
    REQUESTS,
    CheckNetworkRequest,
    ConsoleRequest,
    CreateRequest,
    ImagesRequest,
    ListRequest,
    OneSnapshotRequest,
    OperationRequest,
    OperationsRequest,
    PatchRequest,
    PeerRequest,
    PeersRequest,
    QuotasRequest,
    Reply,
    Request,
    RestoreVmRequest,
    SnapshotsRequest,
    SnapshotVmRequest,
    VmRequest,
)
from schemas.subjects import customer_of

_log = structlog.get_logger("decisec.door")

QUEUE = "gateway"
SUBJECT = "vm.req.*.*"
ACTOR = "bus"
"""Whoever asks here: what the server knows of them is not told to us."""

_MAX_OPEN = 4096
_COMMITTING = frozenset({*VERBS, "create", "snapshot", "restore", "snapshot-delete"})
"""Mutations whose service calls `acts.commit`; for others the door does, before they are done."""

_TOLD = frozenset({ErrorCode.FORBIDDEN, ErrorCode.NOT_FOUND, ErrorCode.RATE_LIMITED})
"""Refusals of reads that are audited."""

Decode = Callable[[bytes], Any]
Answer = Callable[[Principal, Any], Awaitable[Reply]]


class Door:
    """Answers requests on the bus.

    Args:
        bus: The connection.
        service: Does the work.
        keys: Where answers to requests with an idempotency key are kept.
        trail: Where acts and refusals are told.
        background: Holds requests that are being worked on.
        limits: Rates, the same as over HTTP.
        admission: Places, the same as over HTTP.
        operations: Knows how far commands have come.
        snapshots: Does the work on snapshots.
        images: Knows the images.
        peers: Knows who agrees with whom.
        reads: Asks the store.
    """

    def __init__(
        self,
        bus: Bus,
        service: VmService,
        keys: Keys,
        trail: Trail,
        background: Background,
        limits: Limits,
        admission: Admission,
        *,
        operations: OperationService,
        snapshots: SnapshotService,
        images: ImageService,
        peers: PeerService,
        reads: DoorReads,
    ) -> None:
        self._bus = bus
        self._service = service
        self._keys = keys
        self._trail = trail
        self._background = background
        self._limits = limits
        self._admission = admission
        self._operations = operations
        self._snapshots = snapshots
        self._images = images
        self._peers = peers
        self._reads = reads
        self._open = 0
        answers: dict[str, Answer] = {
            **{verb: self._act(verb) for verb in VERBS},
            "create": self._create,
            "get": self._get,
            "list": self._list,
            "patch": self._patch,
            "console": self._console,
            "check-network": self._check_network,
            "operation": self._get_operation,
            "operations": self._list_operations,
            "snapshot": self._snapshot,
            "restore": self._restore,
            "snapshots": self._list_snapshots,
            "snapshot-get": self._get_snapshot,
            "snapshot-delete": self._delete_snapshot,
            "quotas": self._quotas,
            "images": self._list_images,
            "peers": self._list_peers,
            "peer-add": self._add_peer,
            "peer-remove": self._remove_peer,
            **dict.fromkeys(READS, self._read),
        }
        self._verbs: dict[str, tuple[Decode, Answer, bool]] = {
            verb: (decoder(asked.request), answers[verb], asked.mutates)
            for verb, asked in REQUESTS.items()
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
                body, headers = await self._reply(message.subject, known, message.data)
                await self._bus.publish(message.reply, body, headers)
        except TransientError as error:
            _log.warning("reply.lost", subject=message.subject, error=str(error))
        finally:
            self._open -= 1

    async def _reply(self, subject: str, verb: str, data: bytes) -> tuple[bytes, dict[str, str]]:
        """The reply and its headers; kept if the request came with a key."""
        error: Exception | None = None
        try:
            reply = await self._do(customer_of(subject), verb, data)
        except Exception as raised:  # noqa: BLE001 - a defect in one request must not end the others
            error, reply = raised, Reply(error=info_of(raised))
        if isinstance(reply, KeptAnswer):
            return reply.body, {REPLAYED_HEADER: "true"}
        body = encode(reply)
        status = 200 if reply.error is None else int(STATUS_OF[reply.error.code])
        act = acts.current()
        if act is not None and act.claim is not None:
            self._keys.settle(act.claim, KeptAnswer(status=status, body=body), error)
        if act is not None and act.committed:
            under_way = reply.result is not None and reply.result.operation.finished_at is None
            code = reply.error.code.value if reply.error else ""
            self._trail.ended(act, 202 if under_way else status, code)
            await self._trail.heard(act)
        elif reply.error is not None:
            self._refused(subject, verb, act, reply.error, status)
        return body, {}

    def _refused(
        self, subject: str, verb: str, act: Act | None, error: ErrorInfo, status: int
    ) -> None:
        if act is None and error.code not in _TOLD:
            return
        try:
            customer_id = customer_of(subject)
        except InvalidIdError:
            customer_id = ""
        self._trail.refused(
            Refusal(
                customer_id=customer_id,
                actor=ACTOR,
                action=action_of(verb),
                target=act.target if act is not None else "",
                door="bus",
                address="",
                trace_id=trace_id(),
                code=error.code.value,
                status=status,
                single=act is not None and status < 500,
            )
        )

    async def _enter(
        self, customer_id: str, verb: str, request: Request, data: bytes
    ) -> KeptAnswer | None:
        """Enter the act of a request that may change something, or give its earlier answer."""
        act = Act(
            customer_id=customer_id,
            actor=ACTOR,
            action=action_of(verb),
            target=target_of(request),
            door="bus",
            address="",
            trace_id=trace_id(),
            begin=self._trail.begin,
        )
        acts.enter(act)
        if key := request.idempotency_key:
            asked = digest(b"bus", verb.encode(), data)
            found = await self._keys.claim(customer_id, key, asked, request.wait_s)
            if isinstance(found, KeptAnswer):
                return found
            act.take(found)
        if verb not in _COMMITTING:
            await acts.commit()
        return None

    async def _do(self, customer_id: str, verb: str, data: bytes) -> Reply | KeptAnswer:
        if customer_id == OPERATOR:
            # In the audit this name stands for the operators.
            raise RefusedError(ErrorCode.FORBIDDEN, "No customer can be called so.")
        found = self._verbs.get(verb)
        kind = class_of_verb(verb, mutates=found is None or found[2])
        self._limits.admit(customer_id, kind)
        waits = b'"wait_s"' in data
        place = await self._admission.enter(customer_id, lane_of(kind, waits=waits))
        try:
            return await self._serve(customer_id, verb, data)
        finally:
            place.leave()

    async def _serve(self, customer_id: str, verb: str, data: bytes) -> Reply | KeptAnswer:
        found = self._verbs.get(verb)
        if found is None:
            raise RefusedError(ErrorCode.BAD_REQUEST, f"There is no verb {verb!r}.")
        decode, answer, mutates = found
        asked: Request = decode(data)
        if mutates:
            given = await self._enter(customer_id, verb, asked, data)
            if given is not None:
                return given
        return await answer(Principal(ACTOR, customer_id, CUSTOMER_SCOPES), asked)

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

    async def _check_network(self, who: Principal, asked: CheckNetworkRequest) -> Reply:
        return Reply(network=await self._service.check_network(who, asked.vm_id))

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

    async def _get_operation(self, who: Principal, asked: OperationRequest) -> Reply:
        return Reply(operation=await self._operations.get(who, asked.operation_id))

    async def _list_operations(self, who: Principal, asked: OperationsRequest) -> Reply:
        page = self._operations.page(
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

    async def _quotas(self, who: Principal, asked: QuotasRequest) -> Reply:
        del asked
        return Reply(quotas=self._service.quotas(who))

    async def _read(self, who: Principal, asked: Read) -> Reply:
        return await self._reads.answer(who, asked)

    async def _list_images(self, who: Principal, asked: ImagesRequest) -> Reply:
        del asked
        return Reply(images=self._images.all(who))

    async def _list_peers(self, who: Principal, asked: PeersRequest) -> Reply:
        page = self._peers.page(who, asked.state, cursor=asked.cursor, limit=asked.limit)
        return Reply(peers=page)

    async def _add_peer(self, who: Principal, asked: PeerRequest) -> Reply:
        return Reply(peer=await self._peers.add(who, asked.peer_id))

    async def _remove_peer(self, who: Principal, asked: PeerRequest) -> Reply:
        return Reply(peer=await self._peers.remove(who, asked.peer_id))
