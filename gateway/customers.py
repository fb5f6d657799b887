"""Customers as their operator keeps them: made, looked at, changed, closed.

What is written here is an entry of the bucket `customers`, which all gateways follow. No entry is
ever removed: what a customer has used must be answered for years, under a name that nobody else
gets meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from gateway import acts
from gateway.auth import Principal, Scope
from gateway.contention import written
from gateway.cursors import digest, name_only, seal, unseal
from gateway.customer_changes import made, patched
from gateway.errors import RefusedError
from gateway.fleet import Fleet
from gateway.ledger import limits_of
from gateway.price_plans import PricePlanService
from gateway.quotas import Quotas, shown
from runtime.buckets import RevisionConflictError
from runtime.clock import utc_now
from schemas.admin_customers import (
    CreateCustomerRequest,
    CustomerDetails,
    CustomerList,
    CustomerPatch,
    CustomerView,
)
from schemas.errors import ErrorCode
from schemas.hosts import Customer, CustomerStatus
from schemas.ids import RESERVED_CUSTOMERS

MAX_EXAMINED = 10_240
"""Customers that one request looks at."""

_SLICE = 512


@dataclass(frozen=True, slots=True)
class CustomerQuery:
    """Which customers. What is empty is not asked for."""

    status: CustomerStatus | None = None
    pool: str = ""
    price_plan: str = ""

    def wants(self, customer: Customer) -> bool:
        """Whether this is one of those."""
        return (
            self.status in (None, customer.status)
            and self.pool in ("", customer.pool)
            and self.price_plan in ("", customer.price_plan)
        )


class CustomerService:
    """Every question and every change, for principals with `Scope.ADMIN`.

    Each method raises RefusedError for what it will not do, and TransientError when the bus
    cannot be reached.

    Args:
        fleet: The entries, and what customers have.
        quotas: Knows what is used.
        plans: Knows which price plans there are.
    """

    def __init__(self, fleet: Fleet, quotas: Quotas, plans: PricePlanService) -> None:
        self._book = fleet.customers
        self._fleet = fleet
        self._quotas = quotas
        self._plans = plans

    async def page(
        self, principal: Principal, query: CustomerQuery, *, cursor: str, limit: int
    ) -> CustomerList:
        """Customers by name; one that is there all the time is on exactly one page.

        Raises:
            RefusedError: BAD_REQUEST for a wrong cursor.
        """
        principal.require(Scope.ADMIN)
        sealed_with = digest("customers", query.status, query.pool, query.price_plan)
        begin = unseal(sealed_with, cursor)
        last = begin.name if begin else ""
        found: list[CustomerView] = []
        examined = 0
        while True:
            customers = self._book.after(last, _SLICE)
            for customer in customers:
                if query.wants(customer):
                    if len(found) == limit:
                        return _page(found, sealed_with, last)
                    found.append(view(customer))
                last = customer.customer_id
            if len(customers) < _SLICE:
                return CustomerList(customers=tuple(found))
            examined += len(customers)
            if examined >= MAX_EXAMINED:
                return _page(found, sealed_with, last)
            await asyncio.sleep(0)

    async def get(self, principal: Principal, customer_id: str) -> CustomerDetails:
        """One customer as it stands on the server, and what is used of its quota."""
        principal.require(Scope.ADMIN)
        entry = await self._book.bucket.get(customer_id)
        if entry is None:
            raise no_such_customer()
        return self._details(entry.value)

    async def create(self, principal: Principal, request: CreateCustomerRequest) -> CustomerDetails:
        """Enter a customer.

        Raises:
            RefusedError: CONFLICT, the name is taken or reserved; UNKNOWN_PRICE_PLAN.
        """
        principal.require(Scope.ADMIN)
        customer_id = request.customer_id
        if customer_id in RESERVED_CUSTOMERS:
            raise RefusedError(
                ErrorCode.CONFLICT, f"The name {customer_id} is reserved. Take another one."
            )
        await self._plans.check(request.price_plan)
        wanted = made(request, utc_now())
        await acts.commit(target=f"customer {customer_id}")
        try:
            revision = await self._book.bucket.create(customer_id, wanted)
        except RevisionConflictError:
            entry = await self._book.bucket.get(customer_id)
            ours = entry is not None and acts.repeated() and _same(entry.value, wanted)
            if entry is None or not ours:
                raise RefusedError(
                    ErrorCode.CONFLICT, f"There is a customer {customer_id} already."
                ) from None
            wanted, revision = entry.value, entry.revision
        await self._book.shown(revision)
        return self._details(wanted)

    async def patch(
        self,
        principal: Principal,
        customer_id: str,
        wanted: CustomerPatch,
        generations: frozenset[int] | None = None,
    ) -> CustomerDetails:
        """Change what the patch names.

        Raises:
            RefusedError: NOT_FOUND, PRECONDITION_FAILED, UNKNOWN_PRICE_PLAN, or UNAVAILABLE if
                others change this customer all the time.
        """
        principal.require(Scope.ADMIN)
        if isinstance(wanted.price_plan, str):
            await self._plans.check(wanted.price_plan)
        return await self._change(
            customer_id, lambda customer: patched(customer, wanted), generations
        )

    async def close(
        self, principal: Principal, customer_id: str, generations: frozenset[int] | None = None
    ) -> CustomerDetails:
        """Close a customer of whom nothing is left; closing it again changes nothing.

        Raises:
            RefusedError: As `patch`, and CONFLICT while there are VMs or snapshots.
        """
        principal.require(Scope.ADMIN)
        # Read as far as the server has it: what another gateway has just made counts.
        await self._fleet.told.reached(await self._fleet.specs.last_revision())
        await self._fleet.status_heard()
        entry = await self._book.bucket.get(customer_id)
        if entry is None:
            raise no_such_customer()
        used = self._quotas.view(entry.value).used
        if used.vms or used.snapshots:
            raise RefusedError(
                ErrorCode.CONFLICT,
                f"Customer {customer_id} has {used.vms} VMs and {used.snapshots} snapshots. "
                "Suspend it, and have them deleted first.",
            )
        return await self._change(customer_id, _closed, generations)

    async def _change(
        self,
        customer_id: str,
        change: Callable[[Customer], Customer],
        generations: frozenset[int] | None,
    ) -> CustomerDetails:
        """Write a change to the entry as it stands, again if somebody else was faster."""
        bucket = self._book.bucket

        async def attempt() -> tuple[Customer, int | None]:
            entry = await bucket.get(customer_id)
            if entry is None:
                raise no_such_customer()
            at, stands = entry.value.generation, entry.value
            customer = change(stands)
            if generations is not None and at not in generations:
                # Unless an earlier try of this very request has made it what is wanted.
                ours = acts.repeated() and at - 1 in generations and customer is stands
                if not ours:
                    raise _changed()
            if customer is stands:
                return stands, None
            return customer, await bucket.update(customer_id, customer, entry.revision)

        customer, revision = await written(attempt, "this customer")
        if revision is not None:
            await self._book.shown(revision)
        return self._details(customer)

    def _details(self, customer: Customer) -> CustomerDetails:
        used = self._quotas.view(customer).used
        return CustomerDetails(**msgspec.structs.asdict(view(customer)), used=used)


def view(customer: Customer) -> CustomerView:
    """A customer as operators see it."""
    return CustomerView(
        customer_id=customer.customer_id,
        status=customer.status,
        pool=customer.pool,
        price_plan=customer.price_plan,
        quota=shown(limits_of(customer)),
        rates=customer.rates,
        created_at=customer.created_at,
        generation=customer.generation,
    )


def no_such_customer() -> RefusedError:
    """A customer without an entry."""
    return RefusedError(
        ErrorCode.NOT_FOUND,
        "There is no entry of such a customer. Whoever has a good token and no entry has the "
        "defaults; create the entry to change them.",
    )


def _closed(customer: Customer) -> Customer:
    if customer.status is CustomerStatus.CLOSED:
        return customer
    return msgspec.structs.replace(
        customer, status=CustomerStatus.CLOSED, generation=customer.generation + 1
    )


def _same(stands: Customer, wanted: Customer) -> bool:
    return msgspec.structs.replace(stands, created_at=wanted.created_at) == wanted


def _changed() -> RefusedError:
    return RefusedError(
        ErrorCode.PRECONDITION_FAILED,
        "The customer has changed since you looked at it. Look again, and send your change anew.",
    )


def _page(found: list[CustomerView], query: str, last: str) -> CustomerList:
    return CustomerList(
        customers=tuple(found), next_cursor=seal(query, name_only(last)) if last else ""
    )
