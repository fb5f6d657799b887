"""Every call of the operators' API as data. No I/O."""

from __future__ import annotations

from uuid import uuid4

import msgspec

from decisec.sdk.calls import Call, T
from schemas.admin_customers import (
    CreateCustomerRequest,
    CustomerDetails,
    CustomerList,
    CustomerPatch,
)
from schemas.admin_hosts import (
    DrainRequest,
    FoundRequest,
    HostList,
    HostState,
    HostView,
    HostVmList,
    LossRequest,
)
from schemas.hosts import CustomerStatus
from schemas.idempotency import IDEMPOTENCY_HEADER
from schemas.ids import token
from schemas.price_plans import (
    CreatePricePlanRequest,
    PricePlanDetails,
    PricePlanList,
    PriceVersionRequest,
)

_CUSTOMERS = "/v1/admin/customers"
_HOSTS = "/v1/admin/hosts"
_PLANS = "/v1/admin/price-plans"
_MERGE_PATCH = "application/merge-patch+json"


def list_customers(
    status: CustomerStatus | None, pool: str, price_plan: str, page_size: int, cursor: str
) -> Call[CustomerList]:
    """`GET /v1/admin/customers`: one page."""
    wanted = status.value if status is not None else ""
    params = _page(page_size, cursor, status=wanted, pool=pool, price_plan=price_plan)
    return Call("GET", _CUSTOMERS, CustomerList, params=params)


def get_customer(customer_id: str) -> Call[CustomerDetails]:
    """`GET /v1/admin/customers/{customer_id}`."""
    return Call("GET", f"{_CUSTOMERS}/{token(customer_id)}", CustomerDetails)


def create_customer(request: CreateCustomerRequest) -> Call[CustomerDetails]:
    """`POST /v1/admin/customers`."""
    return _mutation("POST", _CUSTOMERS, CustomerDetails, request)


def patch_customer(
    customer_id: str, patch: CustomerPatch, generation: int | None
) -> Call[CustomerDetails]:
    """`PATCH /v1/admin/customers/{customer_id}`."""
    path = f"{_CUSTOMERS}/{token(customer_id)}"
    return _mutation("PATCH", path, CustomerDetails, patch, generation, _MERGE_PATCH)


def close_customer(customer_id: str, generation: int | None) -> Call[CustomerDetails]:
    """`POST /v1/admin/customers/{customer_id}/close`."""
    path = f"{_CUSTOMERS}/{token(customer_id)}/close"
    return _mutation("POST", path, CustomerDetails, None, generation)


def list_hosts(state: HostState | None, pool: str, page_size: int, cursor: str) -> Call[HostList]:
    """`GET /v1/admin/hosts`: one page."""
    wanted = state.value if state is not None else ""
    return Call("GET", _HOSTS, HostList, params=_page(page_size, cursor, state=wanted, pool=pool))


def get_host(host_id: str) -> Call[HostView]:
    """`GET /v1/admin/hosts/{host_id}`."""
    return Call("GET", f"{_HOSTS}/{token(host_id)}", HostView)


def list_host_vms(host_id: str, page_size: int, cursor: str) -> Call[HostVmList]:
    """`GET /v1/admin/hosts/{host_id}/vms`: one page."""
    params = _page(page_size, cursor)
    return Call("GET", f"{_HOSTS}/{token(host_id)}/vms", HostVmList, params=params)


def order_host(host_id: str, verb: str, request: DrainRequest) -> Call[HostView]:
    """`POST /v1/admin/hosts/{host_id}/drain` or `/undrain`."""
    return _mutation("POST", f"{_HOSTS}/{token(host_id)}/{verb}", HostView, request)


def declare_host_lost(host_id: str, request: LossRequest) -> Call[HostView]:
    """`POST /v1/admin/hosts/{host_id}/lost`."""
    return _mutation("POST", f"{_HOSTS}/{token(host_id)}/lost", HostView, request)


def declare_host_found(host_id: str, request: FoundRequest) -> Call[HostView]:
    """`POST /v1/admin/hosts/{host_id}/found`."""
    return _mutation("POST", f"{_HOSTS}/{token(host_id)}/found", HostView, request)


def list_price_plans(page_size: int, cursor: str) -> Call[PricePlanList]:
    """`GET /v1/admin/price-plans`: one page."""
    return Call("GET", _PLANS, PricePlanList, params=_page(page_size, cursor))


def get_price_plan(plan_id: str) -> Call[PricePlanDetails]:
    """`GET /v1/admin/price-plans/{plan_id}`."""
    return Call("GET", f"{_PLANS}/{token(plan_id)}", PricePlanDetails)


def create_price_plan(request: CreatePricePlanRequest) -> Call[PricePlanDetails]:
    """`POST /v1/admin/price-plans`."""
    return _mutation("POST", _PLANS, PricePlanDetails, request)


def add_price_plan_version(
    plan_id: str, request: PriceVersionRequest, generation: int | None
) -> Call[PricePlanDetails]:
    """`POST /v1/admin/price-plans/{plan_id}/versions`."""
    path = f"{_PLANS}/{token(plan_id)}/versions"
    return _mutation("POST", path, PricePlanDetails, request, generation)


def _page(page_size: int, cursor: str, **filters: str) -> tuple[tuple[str, str], ...]:
    given = [(name, value) for name, value in (("cursor", cursor), *filters.items()) if value]
    return (("limit", str(page_size)), *given)


def _mutation(
    method: str,
    path: str,
    answer: type[T],
    body: msgspec.Struct | None,
    generation: int | None = None,
    media: str = "application/json",
) -> Call[T]:
    # With a key, so that it can be sent again when its answer was lost.
    headers = {IDEMPOTENCY_HEADER: uuid4().hex}
    if generation is not None:
        headers["If-Match"] = f'"{generation}"'
    if body is None:
        return Call(method, path, answer, headers=headers)
    headers["Content-Type"] = media
    return Call(method, path, answer, body=msgspec.json.encode(body), headers=headers)
