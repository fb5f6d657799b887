"""What the gateway does, whichever door the request came through."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from gateway import acts, consoles, listing, network_checks, patching
from gateway.auth import Principal, Scope
from gateway.commands import CommandDesk
from gateway.creation import Creation
from gateway.errors import RefusedError, no_such_vm, unavailable
from gateway.fleet import Fleet
from gateway.host_names import HostNames, Naming
from gateway.listing import VmQuery
from gateway.operations import Operations, shown
from gateway.operations import view as operation_view
from gateway.placement import lacking, need_of, total
from gateway.quotas import Quotas
from gateway.settings import GatewaySettings
from gateway.transitions import check
from gateway.vm_views import view as vm_view
from runtime.bus import Bus
from runtime.clock import utc_now
from schemas.api import (
    CreateVmRequest,
    VmAndOperation,
    VmList,
    VmPatch,
    VmView,
)
from schemas.commands import COMMAND_OF
from schemas.consoles import MAX_CHUNK_BYTES, ConsoleChunk, ConsoleQuery
from schemas.errors import ErrorCode, ErrorInfo
from schemas.hosts import Customer, CustomerStatus, Operation, OperationStatus
from schemas.network_checks import NetworkCheck, NetworkQuery
from schemas.quotas import QuotaView
from schemas.requests import MAX_WAIT_S
from schemas.subjects import vm_key
from schemas.vms import VmRecord, VmSpec, VmState

VERBS = ("boot", "shutdown", "pause", "resume", "reboot", "delete")
"""What can be done to a VM that exists."""

_NEED_A_STOPPED_VM = frozenset({"boot", "restore", "snapshot"})
"""Verbs for which a VM that waits for its restart is what it is: stopped."""

_WHILE_SUSPENDED = frozenset({"shutdown", "pause", "delete", "discard"})
"""What a customer that is not active may still do to VMs: what ends them, or costs less."""


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

    Args:
        bus: The connection.
        fleet: Records, statuses, hosts.
        operations: Results.
        desk: The way to the agents.
        creation: Makes VMs.
        quotas: Says what is used.
        names: Calls hosts as whoever asks may know them.
        settings: The operator's.
        ending: Done once this gateway ends: nobody waits for an operation any longer then.
    """

    def __init__(
        self,
        bus: Bus,
        fleet: Fleet,
        operations: Operations,
        desk: CommandDesk,
        creation: Creation,
        quotas: Quotas,
        names: HostNames,
        settings: GatewaySettings,
        ending: asyncio.Future[None],
    ) -> None:
        self._bus = bus
        self._ending = ending
        self._fleet = fleet
        self._operations = operations
        self._desk = desk
        self._creation = creation
        self._quotas = quotas
        self._names = names
        self._settings = settings

    def get(self, principal: Principal, vm_id: UUID) -> VmView:
        """One VM."""
        principal.require(Scope.VMS_READ)
        found = self._fleet.get(principal.customer_id, vm_id, self._names.naming(principal))
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
        principal.require(Scope.VMS_READ)
        found = self._fleet.get(principal.customer_id, vm_id)
        if found is None:
            raise no_such_vm()
        self._require_bus()
        query = ConsoleQuery(
            customer_id=principal.customer_id,
            vm_id=vm_id,
            offset=offset,
            tail_bytes=tail_bytes,
            limit_bytes=limit_bytes,
        )
        return await consoles.ask(self._bus, found, query)

    async def check_network(self, principal: Principal, vm_id: UUID) -> NetworkCheck:
        """Whether a VM can be reached. What its host sends it counts as received by it."""
        principal.require(Scope.VMS_WRITE)
        found = self._fleet.get(principal.customer_id, vm_id)
        if found is None:
            raise no_such_vm()
        self._require_bus()
        query = NetworkQuery(customer_id=principal.customer_id, vm_id=vm_id)
        return await network_checks.ask(self._bus, found, query)

    async def page(
        self, principal: Principal, query: VmQuery, *, cursor: str = "", limit: int = 100
    ) -> VmList:
        """A page of VMs; see `listing.page`. Only operators may ask for those of a host."""
        principal.require(Scope.VMS_READ)
        if query.host is not None:
            principal.require(Scope.ADMIN)
        naming = self._names.naming(principal)
        return await listing.page(
            self._fleet, principal.customer_id, query, cursor=cursor, limit=limit, naming=naming
        )

    def quotas(self, principal: Principal) -> QuotaView:
        """What the customer may have, and what is used of it."""
        principal.require(Scope.VMS_READ)
        return self._quotas.view(self._customer(principal))

    async def patch(
        self,
        principal: Principal,
        vm_id: UUID,
        wanted: VmPatch,
        generations: frozenset[int] | None = None,
    ) -> VmView:
        """Change name or labels; see `patching.patch`."""
        principal.require(Scope.VMS_WRITE)
        self._active_customer(principal)
        self._require_bus()
        naming = self._names.naming(principal)
        return await patching.patch(
            self._fleet, principal.customer_id, vm_id, wanted, generations, naming
        )

    async def create(
        self, principal: Principal, request: CreateVmRequest, wait_s: float = 0.0
    ) -> Outcome:
        """Make a VM, and boot it if the request says so."""
        principal.require(Scope.VMS_WRITE)
        customer = self._active_customer(principal)
        self._require_bus()
        begun = None
        if acts.repeated():
            begun = await self._creation.earlier(
                principal.customer_id, boot=request.boot, requested_by=principal.subject
            )
        if begun is None:
            spec = request.to_spec()
            self._check_quota(customer, spec)
            begun = await self._creation.begin(
                principal.customer_id,
                spec,
                name=request.name,
                pool=customer.pool,
                price_plan=customer.price_plan,
                boot=request.boot,
                requested_by=principal.subject,
            )
        record, operation, work = begun
        result: Operation | None = None
        if wait_s > 0 and work is not None:
            awaited: set[asyncio.Future[Any]] = {work, self._ending}
            await asyncio.wait(
                awaited, timeout=min(wait_s, MAX_WAIT_S), return_when=asyncio.FIRST_COMPLETED
            )
            result = work.result() if work.done() else None
        return await self._outcome(self._names.naming(principal), record, operation, result)

    async def earlier(self) -> Operation | None:
        """What an earlier try of this very request has begun by `act`, if it has."""
        return await self._operations.get(acts.mint("command")) if acts.repeated() else None

    async def act(
        self,
        principal: Principal,
        vm_id: UUID,
        verb: str,
        *,
        grace_s: float | None = None,
        fields: Mapping[str, Any] | None = None,
        permit: Callable[[VmRecord], Awaitable[None]] | None = None,
        wait_s: float = 0.0,
    ) -> Outcome:
        """Do one of `VERBS` to a VM, or what `SnapshotService` asks for.

        Args:
            principal: Who asks.
            vm_id: Which VM.
            verb: What to do.
            grace_s: Time for the guest, where the verb has it.
            fields: What the verb's command says besides.
            permit: Looks at the record as it stands on the server, and may refuse.
            wait_s: How long to wait for the end.
        """
        principal.require(Scope.VMS_WRITE)
        if verb not in _WHILE_SUSPENDED:
            self._active_customer(principal)
        self._require_bus()
        extra: dict[str, Any] = dict(fields or {})
        if grace_s is not None:
            extra["grace_s"] = grace_s
        naming = self._names.naming(principal)
        command_id = acts.mint("command")
        if earlier := await self.earlier():
            return await self._go_on(naming, earlier, extra, wait_s)
        found = await self._fleet.fresh(principal.customer_id, vm_id)
        if found is None:
            raise no_such_vm()
        record, status = found[0].value, found[1]
        if permit is not None:
            await permit(record)
        now = utc_now()
        seen = vm_view(record, status)
        # A VM that is about to be restarted counts as running: it can be shut down for good.
        state = seen.state if seen.restart_at is None else VmState.RUNNING
        check(
            verb,
            seen.state if verb in _NEED_A_STOPPED_VM else state,
            self._operations.verbs_in_flight(vm_id, now),
        )
        command = COMMAND_OF[verb](
            command_id=command_id,
            customer_id=record.customer_id,
            vm_id=vm_id,
            host_id=record.host_id,
            issued_at=now,
            deadline=now + timedelta(seconds=self._settings.command_deadline_s + (grace_s or 0)),
            requested_by=principal.subject,
            **extra,
        )
        return await self._awaited(naming, record, await self._desk.issue(command), wait_s)

    async def _go_on(
        self, naming: Naming, operation: Operation, extra: Mapping[str, Any], wait_s: float
    ) -> Outcome:
        """Finish what an earlier try of the same request has begun."""
        key = vm_key(operation.customer_id, operation.vm_id)
        entry = await self._fleet.specs.get(key)
        if entry is None:
            raise no_such_vm()
        if not operation.finished:
            # It may not have been published; repeating a command that was changes nothing.
            await self._desk.publish(
                COMMAND_OF[operation.verb](
                    command_id=operation.operation_id,
                    customer_id=operation.customer_id,
                    vm_id=operation.vm_id,
                    host_id=operation.host_id,
                    issued_at=operation.created_at,
                    deadline=operation.deadline,
                    requested_by=operation.requested_by,
                    **extra,
                )
            )
        return await self._awaited(naming, entry.value, operation, wait_s)

    async def _awaited(
        self, naming: Naming, record: VmRecord, operation: Operation, wait_s: float
    ) -> Outcome:
        result: Operation | None = None
        if wait_s > 0:
            left_s = (operation.deadline - utc_now()).total_seconds()
            result = await self._operations.finished(
                operation.operation_id,
                max(0.0, min(wait_s, MAX_WAIT_S, left_s + 0.1)),
                self._ending,
            )
        return await self._outcome(naming, record, operation, result)

    async def _outcome(
        self,
        naming: Naming,
        record: VmRecord,
        operation: Operation,
        result: Operation | None,
    ) -> Outcome:
        now = utc_now()
        seen = shown(result or operation, now)
        if seen.status is OperationStatus.FAILED:
            # A create that failed was undone; the same request may come again.
            made = self._fleet.record(vm_key(record.customer_id, record.vm_id)) is not None
            raise _refusal(seen, made=made)
        if result is None:
            key = vm_key(record.customer_id, record.vm_id)
            known = self._fleet.record(key) or record
            view = vm_view(known, self._fleet.status(key), naming)
        else:
            view = await self._settled(record, naming)
        body = VmAndOperation(vm=view, operation=operation_view(seen, now, operation.operation_id))
        return Outcome(body, seen.status is OperationStatus.SUCCEEDED)

    async def _settled(self, record: VmRecord, naming: Naming) -> VmView:
        """The VM after a result; reads that follow on this gateway show no older state."""
        key = vm_key(record.customer_id, record.vm_id)
        entry, status = await self._fleet.read(key)
        if status is not None:
            await self._fleet.shown(key, status)
        return vm_view(entry.value if entry else record, status, naming)

    def _active_customer(self, principal: Principal) -> Customer:
        customer = self._customer(principal)
        if customer.status is not CustomerStatus.ACTIVE:
            raise RefusedError(
                ErrorCode.FORBIDDEN,
                f"This customer is {customer.status.value}: VMs and snapshots can be looked at, "
                "stopped and deleted, and nothing else.",
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


def _refusal(operation: Operation, *, made: bool) -> RefusedError:
    error = operation.error or ErrorInfo(
        code=ErrorCode.INTERNAL, message="The operation failed without a reason."
    )
    retry_after_s = 5.0 if error.code is ErrorCode.NO_CAPACITY else None
    return RefusedError(
        error.code,
        error.message,
        retry_after_s=retry_after_s,
        headers={"Location": f"/v1/operations/{operation.operation_id}"},
        decided=made and error.code is not ErrorCode.UNAVAILABLE,
    )
