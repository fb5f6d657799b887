"""The operators' part of the blocking client."""

from __future__ import annotations

from collections.abc import Iterator
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

    def __call__(self, call: Call[T]) -> T:
        """The answer's body."""


class Admin:
    """`Client.admin`: customers, hosts and price plans, for tokens with the scope `admin`.

    Raises what `Client` raises: ForbiddenError for all other tokens.

    Args:
        send: The client's.
    """

    def __init__(self, send: Sender) -> None:
        self._send = send

    def list_customers(
        self,
        *,
        status: CustomerStatus | None = None,
        pool: str = "",
        price_plan: str = "",
        page_size: int = 100,
    ) -> Iterator[CustomerView]:
        """Customers that have an entry and fit all that is given, by name, page by page."""
        cursor = ""
        while True:
            page = self._send(calls.list_customers(status, pool, price_plan, page_size, cursor))
            yield from page.customers
            cursor = page.next_cursor
            if not cursor:
                return

    def get_customer(self, customer_id: str) -> CustomerDetails:
        """One customer, with what is used of the quota."""
        return self._send(calls.get_customer(customer_id))

    def create_customer(self, request: CreateCustomerRequest) -> CustomerDetails:
        """Give a customer an entry; ConflictError if there is one, or the name is reserved."""
        return self._send(calls.create_customer(request))

    def patch_customer(
        self, customer_id: str, patch: CustomerPatch, *, generation: int | None = None
    ) -> CustomerDetails:
        """Change what the patch names.

        Args:
            customer_id: Whose entry.
            patch: What is not named stays, and null is the default.
            generation: Only if it still stands at this one; PreconditionFailedError if not.
        """
        return self._send(calls.patch_customer(customer_id, patch, generation))

    def suspend_customer(self, customer_id: str) -> CustomerDetails:
        """Let a customer look, stop and delete, and nothing else."""
        return self.patch_customer(customer_id, CustomerPatch(status="suspended"))

    def resume_customer(self, customer_id: str) -> CustomerDetails:
        """Let a suspended or closed customer make and start things again."""
        return self.patch_customer(customer_id, CustomerPatch(status="active"))

    def close_customer(self, customer_id: str, *, generation: int | None = None) -> CustomerDetails:
        """Close a customer of whom nothing is left; ConflictError otherwise."""
        return self._send(calls.close_customer(customer_id, generation))

    def list_hosts(
        self, *, state: HostState | None = None, pool: str = "", page_size: int = 100
    ) -> Iterator[HostView]:
        """Hosts by name, page by page."""
        cursor = ""
        while True:
            page = self._send(calls.list_hosts(state, pool, page_size, cursor))
            yield from page.hosts
            cursor = page.next_cursor
            if not cursor:
                return

    def get_host(self, host_id: str) -> HostView:
        """One host."""
        return self._send(calls.get_host(host_id))

    def list_host_vms(self, host_id: str, *, page_size: int = 100) -> Iterator[HostVm]:
        """The VMs on a host, of all customers, page by page."""
        cursor = ""
        while True:
            page = self._send(calls.list_host_vms(host_id, page_size, cursor))
            yield from page.vms
            cursor = page.next_cursor
            if not cursor:
                return

    def drain_host(self, host_id: str, *, reason: str = "", force: bool = False) -> HostView:
        """Order a host to take no new VM; `force` also for one that nothing is known of."""
        request = DrainRequest(reason=reason, force=force)
        return self._send(calls.order_host(host_id, "drain", request))

    def undrain_host(self, host_id: str, *, reason: str = "", force: bool = False) -> HostView:
        """Order a host to take VMs again."""
        request = DrainRequest(reason=reason, force=force)
        return self._send(calls.order_host(host_id, "undrain", request))

    def declare_host_lost(self, host_id: str, *, reason: str, force: bool = False) -> HostView:
        """Let usage answers wait for a host no longer.

        Args:
            host_id: Which.
            reason: Why, for the audit and those who look at the bills.
            force: Though it is heard of, or frames of it are not stored yet: ConflictError if not.
        """
        request = LossRequest(reason=reason, force=force)
        return self._send(calls.declare_host_lost(host_id, request))

    def declare_host_found(self, host_id: str, *, reason: str = "found again") -> HostView:
        """Let usage answers wait for a host again."""
        return self._send(calls.declare_host_found(host_id, FoundRequest(reason=reason)))

    def list_price_plans(self, *, page_size: int = 100) -> Iterator[PricePlanView]:
        """Price plans by id, page by page, each with what is valid now and what comes next."""
        cursor = ""
        while True:
            page = self._send(calls.list_price_plans(page_size, cursor))
            yield from page.price_plans
            cursor = page.next_cursor
            if not cursor:
                return

    def get_price_plan(self, plan_id: str) -> PricePlanDetails:
        """One price plan with all its versions."""
        return self._send(calls.get_price_plan(plan_id))

    def create_price_plan(self, request: CreatePricePlanRequest) -> PricePlanDetails:
        """Enter a price plan with its first version."""
        return self._send(calls.create_price_plan(request))

    def add_price_plan_version(
        self, plan_id: str, request: PriceVersionRequest, *, generation: int | None = None
    ) -> PricePlanDetails:
        """Give a price plan other prices from an instant on.

        Args:
            plan_id: Which.
            request: Later than all versions there are, and not in the past: ConflictError if not.
            generation: Only while it has so many versions.
        """
        return self._send(calls.add_price_plan_version(plan_id, request, generation))
