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

from gateway.admission import Admission, lane_of
from gateway.auth import Principal, Scope
from gateway.errors import RefusedError, unavailable
from gateway.limits import Limits, class_of_verb
from gateway.service import MAX_WAIT_S, VERBS, VmService
from runtime.bus import Bus, Message
from runtime.errors import TransientError
from runtime.telemetry import span
from schemas.api import CreateVmRequest, VmAndOperation, VmView
from schemas.codec import decoder, encode
from schemas.consoles import MAX_CHUNK_BYTES, ChunkLimit, ConsoleChunk
from schemas.errors import ErrorCode, ErrorInfo, InvalidIdError, MalformedMessageError
from schemas.ids import VmId
from schemas.subjects import customer_of
from schemas.units import Counter

_log = structlog.get_logger("decisec.door")

QUEUE = "gateway"
SUBJECT = "vm.req.*.*"
_MAX_OPEN = 4096

Wait = Annotated[float, msgspec.Meta(ge=0, le=MAX_WAIT_S)]


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
        limits: Rates, the same as over HTTP.
        admission: Places, the same as over HTTP.
        group: Holds requests that are being worked on.
    """

    def __init__(
        self,
        bus: Bus,
        service: VmService,
        limits: Limits,
        admission: Admission,
        group: asyncio.TaskGroup,
    ) -> None:
        self._bus = bus
        self._service = service
        self._limits = limits
        self._admission = admission
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
        kind = class_of_verb(verb)
        self._limits.admit(customer_id, kind)
        waits = b'"wait_s"' in data
        place = await self._admission.enter(customer_id, lane_of(kind, waits=waits))
        try:
            return await self._serve(customer_id, verb, data)
        finally:
            place.leave()

    async def _serve(self, customer_id: str, verb: str, data: bytes) -> Reply:
        who = Principal("bus", customer_id, frozenset(Scope))
        if verb == "create":
            create: CreateRequest = _decode_create(data)
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
        outcome = await self._service.act(
            who,
            vm_id,
            verb,
            grace_s=request.grace_s if verb in ("shutdown", "reboot") else None,
            wait_s=request.wait_s,
        )
        return Reply(result=outcome.body)
