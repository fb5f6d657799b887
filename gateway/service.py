"""What the gateway does, whichever door the request came through."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from gateway import consoles
from gateway.auth import Principal, Scope
from gateway.commands import CommandDesk
from gateway.creation import Creation
from gateway.errors import RefusedError, no_such_vm, unavailable
from gateway.fleet import Fleet
from gateway.fleet import view as vm_view
from gateway.operations import Operations, shown
from gateway.operations import view as operation_view
from gateway.placement import lacking, need_of, total
from gateway.quotas import Quotas
from gateway.settings import GatewaySettings
from gateway.transitions import check
from runtime.bus import Bus
from runtime.clock import utc_now
from runtime.errors import TransientError
from schemas.api import CreateVmRequest, OperationView, VmAndOperation, VmList, VmView
from schemas.codec import encode
from schemas.commands import COMMAND_OF
from schemas.consoles import MAX_CHUNK_BYTES, ConsoleChunk, ConsoleQuery
from schemas.errors import ErrorCode, ErrorInfo, MalformedMessageError
from schemas.hosts import Customer, CustomerStatus, Operation, OperationStatus
from schemas.ids import new_id
from schemas.quotas import QuotaView
from schemas.subjects import usage_query, vm_key
from schemas.usage import UsageQuery, UsageReport, decode_usage_reply
from schemas.vms import VmRecord, VmSpec, VmState

VERBS = ("boot", "shutdown", "pause", "resume", "reboot", "delete")
"""What can be done to a VM that exists."""

MAX_WAIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a mutation has come to.

    Attributes:
        body: The VM and the operation as they stand.
        finished: The operation has succeeded; otherwise it is still under way.
    """

    body: VmAndOperation
    finished: bool


class VmService:
    """Every question and every mutation, for a principal that is authenticated already.

    Each method raises RefusedError for what it will not do, and TransientError when the bus
    cannot be reached. A foreign VM, a missing one and a deleted one are the same to it.
    """

    def __init__(
        self,
        bus: Bus,
        fleet: Fleet,
        operations: Operations,
        desk: CommandDesk,
        creation: Creation,
        quotas: Quotas,
        settings: GatewaySettings,
    ) -> None:
        self._bus = bus
        self._fleet = fleet
        self._operations = operations
        self._desk = desk
        self._creation = creation
        self._quotas = quotas
        self._settings = settings

    def get(self, principal: Principal, vm_id: UUID) -> VmView:
        """One VM."""
        principal.require(Scope.VMS_READ)
        found = self._fleet.get(principal.customer_id, vm_id)
        if found is None:
            raise no_such_vm()
        return found

    async def console(
        self,
        principal: Principal,
        vm_id: UUID,
        *,
        offset: int | None = None,
        tail_bytes: int | None = None,
        limit_bytes: int = MAX_CHUNK_BYTES,
    ) -> ConsoleChunk:
        """A part of what a VM printed, as `ConsoleQuery` has it."""
        found = self.get(principal, vm_id)
        self._require_bus()
        query = ConsoleQuery(
            customer_id=principal.customer_id,
            vm_id=vm_id,
            offset=offset,
            tail_bytes=tail_bytes,
            limit_bytes=limit_bytes,
        )
        return await consoles.ask(self._bus, found, query)

    def page(
        self, principal: Principal, *, after: UUID | None, limit: int, state: VmState | None
    ) -> VmList:
        """VMs in the order in which they were made."""
        principal.require(Scope.VMS_READ)
        vms, cursor = self._fleet.page(principal.customer_id, after=after, limit=limit, state=state)
        return VmList(vms=vms, next_cursor=str(cursor) if cursor else "")

    def quotas(self, principal: Principal) -> QuotaView:
        """What the customer may have, and what is used of it."""
        principal.require(Scope.VMS_READ)
        return self._quotas.view(self._customer(principal))

    async def operation(self, principal: Principal, operation_id: UUID) -> OperationView:
        """One operation."""
        principal.require(Scope.VMS_READ)
        found = await self._operations.get(operation_id)
        if found is None or found.customer_id != principal.customer_id:
            raise RefusedError(ErrorCode.NOT_FOUND, "There is no such operation.")
        current = await self._creation.current(found)
        return operation_view(current, utc_now(), operation_id)

    async def create(
        self, principal: Principal, request: CreateVmRequest, wait_s: float = 0.0
    ) -> Outcome:
        """Make a VM, and boot it if the request says so."""
        principal.require(Scope.VMS_WRITE)
        customer = self._active_customer(principal)
        self._require_bus()
        spec = request.to_spec()
        self._check_quota(customer, spec)
        record, operation, work = await self._creation.begin(
            principal.customer_id,
            spec,
            name=request.name,
            pool=customer.pool,
            price_plan=customer.price_plan,
            boot=request.boot,
            requested_by=principal.subject,
        )
        result: Operation | None = None
        if wait_s > 0:
            done, _ = await asyncio.wait({work}, timeout=min(wait_s, MAX_WAIT_S))
            result = work.result() if done else None
        return await self._outcome(record, operation, result)

    async def act(
        self,
        principal: Principal,
        vm_id: UUID,
        verb: str,
        *,
        grace_s: float | None = None,
        wait_s: float = 0.0,
    ) -> Outcome:
        """Do one of `VERBS` to a VM."""
        principal.require(Scope.VMS_WRITE)
        self._active_customer(principal)
        self._require_bus()
        found = await self._fleet.fresh(principal.customer_id, vm_id)
        if found is None:
            raise no_such_vm()
        record, status = found[0].value, found[1]
        now = utc_now()
        seen = vm_view(record, status)
        # A VM that is about to be restarted counts as running: it can be shut down for good.
        state = seen.state if seen.restart_at is None else VmState.RUNNING
        check(
            verb,
            seen.state if verb == "boot" else state,
            self._operations.verbs_in_flight(vm_id, now),
        )
        extra: dict[str, Any] = {} if grace_s is None else {"grace_s": grace_s}
        command = COMMAND_OF[verb](
            command_id=new_id(),
            customer_id=record.customer_id,
            vm_id=vm_id,
            host_id=record.host_id,
            issued_at=now,
            deadline=now + timedelta(seconds=self._settings.command_deadline_s + (grace_s or 0)),
            requested_by=principal.subject,
            **extra,
        )
        operation = await self._desk.issue(command)
        result: Operation | None = None
        if wait_s > 0:
            left_s = (operation.deadline - utc_now()).total_seconds()
            result = await self._operations.finished(
                operation.operation_id, min(wait_s, MAX_WAIT_S, left_s + 0.1)
            )
        return await self._outcome(record, operation, result)

    async def usage(
        self, principal: Principal, start: datetime, end: datetime, vm_ids: tuple[UUID, ...]
    ) -> UsageReport:
        """What the customer has used in `[start, end)`."""
        principal.require(Scope.USAGE_READ)
        self._require_bus()
        query = UsageQuery(start=start, end=end, vm_ids=vm_ids)
        answer = await self._bus.request(
            usage_query(principal.customer_id),
            encode(query),
            timeout_s=self._settings.usage_timeout_s,
        )
        try:
            reply = decode_usage_reply(answer.data)
        except MalformedMessageError as error:
            raise TransientError(f"malformed usage reply: {error.detail}") from error
        if reply.error is not None:
            raise RefusedError(reply.error.code, reply.error.message)
        if reply.report is None or reply.report.customer_id != principal.customer_id:
            raise TransientError("the usage reply is not for this customer")
        return reply.report

    async def _outcome(
        self, record: VmRecord, operation: Operation, result: Operation | None
    ) -> Outcome:
        now = utc_now()
        seen = shown(result or operation, now)
        if seen.status is OperationStatus.FAILED:
            raise _refusal(seen)
        if result is None:
            key = vm_key(record.customer_id, record.vm_id)
            view = vm_view(self._fleet.record(key) or record, self._fleet.status(key))
        else:
            view = await self._settled(record)
        body = VmAndOperation(vm=view, operation=operation_view(seen, now, operation.operation_id))
        return Outcome(body, seen.status is OperationStatus.SUCCEEDED)

    async def _settled(self, record: VmRecord) -> VmView:
        """The VM after a result; reads that follow on this gateway show no older state."""
        key = vm_key(record.customer_id, record.vm_id)
        entry, status = await asyncio.gather(
            self._fleet.specs.get(key), self._fleet.statuses.get(key)
        )
        if status is not None:
            await self._fleet.shown(key, status.value)
        return vm_view(entry.value if entry else record, status.value if status else None)

    def _active_customer(self, principal: Principal) -> Customer:
        customer = self._customer(principal)
        if customer.status is CustomerStatus.SUSPENDED:
            raise RefusedError(
                ErrorCode.FORBIDDEN, "This customer is suspended; VMs cannot be changed."
            )
        return customer

    def _customer(self, principal: Principal) -> Customer:
        # Tokens are trusted for identity: a customer without an entry gets the defaults.
        return self._fleet.customer(principal.customer_id) or Customer(
            customer_id=principal.customer_id, created_at=utc_now()
        )

    def _check_quota(self, customer: Customer, spec: VmSpec) -> None:
        # Cheap, from memory; the ledger has the last word.
        wanted = total((self._fleet.used(customer.customer_id), need_of(spec)))
        if over := lacking(wanted, customer.quota):
            parts = ", ".join(
                f"{name} {getattr(wanted, name)} of {getattr(customer.quota, name)}"
                for name in over
            )
            raise RefusedError(ErrorCode.FORBIDDEN, f"The quota would be exceeded: {parts}.")

    def _require_bus(self) -> None:
        if not self._bus.connected:
            raise unavailable()


def _refusal(operation: Operation) -> RefusedError:
    error = operation.error or ErrorInfo(
        code=ErrorCode.INTERNAL, message="The operation failed without a reason."
    )
    retry_after_s = 5.0 if error.code is ErrorCode.NO_CAPACITY else None
    return RefusedError(
        error.code,
        error.message,
        retry_after_s=retry_after_s,
        headers={"Location": f"/v1/operations/{operation.operation_id}"},
    )
