"""The door on the bus: `vm.req.<customer>.<verb>`, the same answers as over HTTP.

Whoever may publish on a customer's subject speaks for that customer: the server's permissions
are the authentication here.
"""

from __future__ import annotations

import asyncio
from typing import Annotated
from uuid import UUID

import msgspec
import structlog
from opentelemetry.trace import SpanKind

from gateway import acts
from gateway.acts import Act
from gateway.auth import CUSTOMER_SCOPES, Principal
from gateway.errors import RefusedError, unavailable
from gateway.idempotency import Keys, digest
from gateway.problems import STATUS_OF
from gateway.service import MAX_WAIT_S, VERBS, VmService
from runtime.bus import Bus, Message
from runtime.errors import TransientError
from runtime.telemetry import span
from schemas.api import CreateVmRequest, VmAndOperation, VmView
from schemas.codec import decoder, encode
from schemas.consoles import MAX_CHUNK_BYTES, ChunkLimit, ConsoleChunk
from schemas.errors import ErrorCode, ErrorInfo, InvalidIdError, MalformedMessageError
from schemas.idempotency import REPLAYED_HEADER, IdempotencyKey, KeptAnswer
from schemas.ids import VmId
from schemas.subjects import customer_of
from schemas.units import Counter

_log = structlog.get_logger("decisec.door")

QUEUE = "gateway"
SUBJECT = "vm.req.*.*"
_MAX_OPEN = 256

Wait = Annotated[float, msgspec.Meta(ge=0, le=MAX_WAIT_S)]


class CreateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """On `vm.req.<customer>.create`."""

    vm: CreateVmRequest
    wait_s: Wait = 0.0
    idempotency_key: IdempotencyKey = ""


class VmRequest(msgspec.Struct, frozen=True, kw_only=True):
    """On `vm.req.<customer>.<any other verb>`; `get` ignores all but `vm_id`."""

    vm_id: VmId
    wait_s: Wait = 0.0
    grace_s: Annotated[float, msgspec.Meta(ge=0, le=300)] = 10.0
    idempotency_key: IdempotencyKey = ""


class ConsoleRequest(msgspec.Struct, frozen=True, kw_only=True):
    """On `vm.req.<customer>.console`. See `ConsoleQuery`."""

    vm_id: VmId
    offset: Counter | None = None
    tail_bytes: Counter | None = None
    limit_bytes: ChunkLimit = MAX_CHUNK_BYTES


class Reply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Exactly one of these is set."""

    vm: VmView | None = None
    result: VmAndOperation | None = None
    console: ConsoleChunk | None = None
    error: ErrorInfo | None = None


_decode_create = decoder(CreateRequest)
_decode_request = decoder(VmRequest)
_decode_console = decoder(ConsoleRequest)


class Door:
    """Answers requests on the bus.

    Args:
        bus: The connection.
        service: Does the work.
        keys: Where answers to requests with an idempotency key are kept.
        group: Holds requests that are being worked on.
    """

    def __init__(self, bus: Bus, service: VmService, keys: Keys, group: asyncio.TaskGroup) -> None:
        self._bus = bus
        self._service = service
        self._keys = keys
        self._group = group
        self._open = 0

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
        # A request may wait for its operation; the next one must not wait for it.
        self._open += 1
        self._group.create_task(self._answer(message), name="bus-request")
        return None

    async def _answer(self, message: Message) -> None:
        verb = message.subject.rpartition(".")[2]
        known = verb if verb in (*VERBS, "create", "get", "console") else "unknown"
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
            error, reply = raised, Reply(error=_info(raised))
        if isinstance(reply, KeptAnswer):
            return reply.body, {REPLAYED_HEADER: "true"}
        body = encode(reply)
        act = acts.current()
        if act is not None and act.claim is not None:
            status = 200 if reply.error is None else int(STATUS_OF[reply.error.code])
            self._keys.settle(act.claim, KeptAnswer(status=status, body=body), error)
        return body, {}

    async def _enter(
        self, customer_id: str, verb: str, key: str, data: bytes, wait_s: float
    ) -> KeptAnswer | None:
        """Enter the act of a request that may change something, or give its earlier answer."""
        act = Act()
        acts.enter(act)
        if not key:
            return None
        request = digest(b"bus", verb.encode(), data)
        found = await self._keys.claim(customer_id, key, request, wait_s)
        if isinstance(found, KeptAnswer):
            return found
        act.take(found)
        return None

    async def _do(self, customer_id: str, verb: str, data: bytes) -> Reply | KeptAnswer:
        who = Principal("bus", customer_id, CUSTOMER_SCOPES)
        if verb == "create":
            create: CreateRequest = _decode_create(data)
            given = await self._enter(
                customer_id, verb, create.idempotency_key, data, create.wait_s
            )
            if given is not None:
                return given
            made = await self._service.create(who, create.vm, create.wait_s)
            return Reply(result=made.body)
        if verb == "console":
            part: ConsoleRequest = _decode_console(data)
            chunk = await self._service.console(
                who,
                part.vm_id,
                offset=part.offset,
                tail_bytes=part.tail_bytes,
                limit_bytes=part.limit_bytes,
            )
            return Reply(console=chunk)
        request: VmRequest = _decode_request(data)
        vm_id: UUID = request.vm_id
        if verb == "get":
            return Reply(vm=self._service.get(who, vm_id))
        if verb not in VERBS:
            raise RefusedError(ErrorCode.BAD_REQUEST, f"There is no verb {verb!r}.")
        given = await self._enter(customer_id, verb, request.idempotency_key, data, request.wait_s)
        if given is not None:
            return given
        outcome = await self._service.act(
            who,
            vm_id,
            verb,
            grace_s=request.grace_s if verb in ("shutdown", "reboot") else None,
            wait_s=request.wait_s,
        )
        return Reply(result=outcome.body)


def _info(error: Exception) -> ErrorInfo:
    match error:
        case RefusedError():
            return error.info
        case TransientError():
            _log.warning("request.deferred", error=str(error))
            return unavailable().info
        case MalformedMessageError() | InvalidIdError():
            return ErrorInfo(code=ErrorCode.BAD_REQUEST, message=str(error))
        case _:
            _log.error("request.crashed", exc_info=error)
            return ErrorInfo(code=ErrorCode.INTERNAL, message="Something went wrong here.")
