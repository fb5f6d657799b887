"""The operators' part of the asyncio client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from decisec.sdk import admin_calls as calls
from decisec.sdk.calls import Call, T
from schemas.admin_customers import (
    CreateCustomerRequest,
    CustomerDetails,
    CustomerPatch,
    CustomerView,
)
from schemas.admin_hosts import (
    DrainRequest,
    FoundRequest,
    HostState,
    HostView,
    HostVm,
    LossRequest,
)
from schemas.hosts import CustomerStatus
from schemas.price_plans import (
    CreatePricePlanRequest,
    PricePlanDetails,
    PricePlanView,
    PriceVersionRequest,
)


class Sender(Protocol):
    """Sends a call and reads its answer."""

    async def __call__(self, call: Call[T]) -> T:
        """The answer's body."""


class AsyncAdmin:
    """`AsyncClient.admin`: customers, hosts and price plans, for tokens with the scope `admin`.

    Raises what `AsyncClient` raises: ForbiddenError for all other tokens.

    Args:
        send: The client's.
    """

    def __init__(self, send: Sender) -> None:
        self._send = send

    async def list_customers(
        self,
        *,
        status: CustomerStatus | None = None,
        pool: str = "",
        price_plan: str = "",
        page_size: int = 100,
    ) -> AsyncIterator[CustomerView]:
        """Customers that have an entry and fit all that is given, by name, page by page."""
        cursor = ""
        while True:
            page = await self._send(
                calls.list_customers(status, pool, price_plan, page_size, cursor)
            )
            for one in page.customers:
                yield one
            cursor = page.next_cursor
            if not cursor:
                return

    async def get_customer(self, customer_id: str) -> CustomerDetails:
        """One customer, with what is used of the quota."""
        return await self._send(calls.get_customer(customer_id))

    async def create_customer(self, request: CreateCustomerRequest) -> CustomerDetails:
        """Give a customer an entry; ConflictError if there is one, or the name is reserved."""
        return await self._send(calls.create_customer(request))

    async def patch_customer(
        self, customer_id: str, patch: CustomerPatch, *, generation: int | None = None
    ) -> CustomerDetails:
        """Change what the patch names.

        Args:
            customer_id: Whose entry.
            patch: What is not named stays, and null is the default.
            generation: Only if it still stands at this one; PreconditionFailedError if not.
        """
        return await self._send(calls.patch_customer(customer_id, patch, generation))

    async def suspend_customer(self, customer_id: str) -> CustomerDetails:
        """Let a customer look, stop and delete, and nothing else."""
        return await self.patch_customer(customer_id, CustomerPatch(status="suspended"))

    async def resume_customer(self, customer_id: str) -> CustomerDetails:
        """Let a suspended or closed customer make and start things again."""
        return await self.patch_customer(customer_id, CustomerPatch(status="active"))

    async def close_customer(
        self, customer_id: str, *, generation: int | None = None
    ) -> CustomerDetails:
        """Close a customer of whom nothing is left; ConflictError otherwise."""
        return await self._send(calls.close_customer(customer_id, generation))

    async def list_hosts(
        self, *, state: HostState | None = None, pool: str = "", page_size: int = 100
    ) -> AsyncIterator[HostView]:
        """Hosts by name, page by page."""
        cursor = ""
        while True:
            page = await self._send(calls.list_hosts(state, pool, page_size, cursor))
            for one in page.hosts:
                yield one
            cursor = page.next_cursor
            if not cursor:
                return

    async def get_host(self, host_id: str) -> HostView:
        """One host."""
        return await self._send(calls.get_host(host_id))

    async def list_host_vms(self, host_id: str, *, page_size: int = 100) -> AsyncIterator[HostVm]:
        """The VMs on a host, of all customers, page by page."""
        cursor = ""
        while True:
            page = await self._send(calls.list_host_vms(host_id, page_size, cursor))
            for one in page.vms:
                yield one
            cursor = page.next_cursor
            if not cursor:
                return

    async def drain_host(self, host_id: str, *, reason: str = "", force: bool = False) -> HostView:
        """Order a host to take no new VM; `force` also for one that nothing is known of."""
        request = DrainRequest(reason=reason, force=force)
        return await self._send(calls.order_host(host_id, "drain", request))

    async def undrain_host(
        self, host_id: str, *, reason: str = "", force: bool = False
    ) -> HostView:
        """Order a host to take VMs again."""
        request = DrainRequest(reason=reason, force=force)
        return await self._send(calls.order_host(host_id, "undrain", request))

    async def declare_host_lost(
        self, host_id: str, *, reason: str, force: bool = False
    ) -> HostView:
        """Let usage answers wait for a host no longer.

        Args:
            host_id: Which.
            reason: Why, for the audit and those who look at the bills.
            force: Though it is heard of, or frames of it are not stored yet: ConflictError if not.
        """
        request = LossRequest(reason=reason, force=force)
        return await self._send(calls.declare_host_lost(host_id, request))

    async def declare_host_found(self, host_id: str, *, reason: str = "found again") -> HostView:
        """Let usage answers wait for a host again."""
        return await self._send(calls.declare_host_found(host_id, FoundRequest(reason=reason)))

    async def list_price_plans(self, *, page_size: int = 100) -> AsyncIterator[PricePlanView]:
        """Price plans by id, page by page, each with what is valid now and what comes next."""
        cursor = ""
        while True:
            page = await self._send(calls.list_price_plans(page_size, cursor))
            for one in page.price_plans:
                yield one
            cursor = page.next_cursor
            if not cursor:
                return

    async def get_price_plan(self, plan_id: str) -> PricePlanDetails:
        """One price plan with all its versions."""
        return await self._send(calls.get_price_plan(plan_id))

    async def create_price_plan(self, request: CreatePricePlanRequest) -> PricePlanDetails:
        """Enter a price plan with its first version."""
        return await self._send(calls.create_price_plan(request))

    async def add_price_plan_version(
        self, plan_id: str, request: PriceVersionRequest, *, generation: int | None = None
    ) -> PricePlanDetails:
        """Give a price plan other prices from an instant on.

        Args:
            plan_id: Which.
            request: Later than all versions there are, and not in the past: ConflictError if not.
            generation: Only while it has so many versions.
        """
        return await self._send(calls.add_price_plan_version(plan_id, request, generation))
