"""Customers, for operators: looked at, entered, changed, closed."""

from __future__ import annotations

from typing import Annotated, Any

from litestar import Response, get, patch, post
from litestar.params import JSONBody, QueryParameter

from gateway.bodies import BODY, MEDIA, MERGE_PATCH, StrictRequest
from gateway.customers import CustomerQuery, CustomerService, no_such_customer
from gateway.routes import examples_admin as examples
from gateway.routes.common import COMMITS, Cursor, IfMatchOf, Token, answer, generations_of, who
from schemas.admin_customers import (
    MAX_CUSTOMER_PAGE,
    CreateCustomerRequest,
    CustomerDetails,
    CustomerList,
    CustomerPatch,
)
from schemas.errors import InvalidIdError
from schemas.hosts import CustomerStatus
from schemas.ids import token

Limit = Annotated[
    int, QueryParameter(ge=1, le=MAX_CUSTOMER_PAGE, description="Customers on a page.")
]
Status = Annotated[
    CustomerStatus | None, QueryParameter(name="status", description="Only customers so.")
]
Pool = Annotated[str, QueryParameter(description="Only customers of this pool.", max_length=63)]
Plan = Annotated[
    str, QueryParameter(description="Only customers with this price plan.", max_length=63)
]


@get("/customers", summary="List customers", operation_class=examples.customer_list)
async def list_customers(
    request: StrictRequest,
    limit: Limit = 100,
    cursor: Cursor = "",
    customer_status: Status = None,
    pool: Pool = "",
    price_plan: Plan = "",
) -> Response[CustomerList]:
    """Customers that have an entry, closed ones included, by name."""
    query = CustomerQuery(status=customer_status, pool=pool, price_plan=price_plan)
    return answer(await customers(request).page(who(request), query, cursor=cursor, limit=limit))


@post(
    "/customers",
    opt={BODY: CreateCustomerRequest, COMMITS: True},
    summary="Enter a customer",
    operation_class=examples.new_customer,
)
async def create_customer(
    request: StrictRequest, data: JSONBody[CreateCustomerRequest]
) -> Response[CustomerDetails]:
    """Give a customer an entry, where something is not to be as for everybody.

    A customer who has a good token and no entry has the defaults; an entry may be made for one
    who is there already. A name that was given once is never given again.
    """
    made = await customers(request).create(who(request), data)
    location = f"/v1/admin/customers/{made.customer_id}"
    return answer(made, 201, {"Location": location, "ETag": _etag(made)})


@get(
    "/customers/{customer_id:str}", summary="Look at a customer", operation_class=examples.customer
)
async def get_customer(request: StrictRequest, customer_id: Token) -> Response[CustomerDetails]:
    """One customer, with what is used of the quota."""
    return _shown(await customers(request).get(who(request), _customer_of(customer_id)))


@patch(
    "/customers/{customer_id:str}",
    opt={BODY: CustomerPatch, MEDIA: (MERGE_PATCH, "application/json")},
    summary="Change a customer",
    operation_class=examples.customer_patch,
)
async def patch_customer(
    request: StrictRequest,
    customer_id: Token,
    data: JSONBody[CustomerPatch],
    if_match: IfMatchOf = "",
) -> Response[CustomerDetails]:
    """Apply a JSON merge patch: status, pool, price plan, quota, rates.

    All gateways go by it within a second. A suspended customer may look, stop and delete; nothing
    is made or started, through either door. Opens a closed customer again.
    """
    generations = generations_of(if_match)
    return _shown(
        await customers(request).patch(who(request), _customer_of(customer_id), data, generations)
    )


@post(
    "/customers/{customer_id:str}/close",
    summary="Close a customer",
    status_code=200,
    operation_class=examples.customer,
)
async def close_customer(
    request: StrictRequest, customer_id: Token, if_match: IfMatchOf = ""
) -> Response[CustomerDetails]:
    """Close a customer of whom no VM and no snapshot is left: 409 `conflict` otherwise.

    The entry stays, with the status `closed`: usage and bills are answered as before, and nobody
    else gets the name. A patch of the status opens it again.
    """
    generations = generations_of(if_match)
    return _shown(
        await customers(request).close(who(request), _customer_of(customer_id), generations)
    )


def customers(request: StrictRequest) -> CustomerService:
    """The service that the app was built around."""
    found: CustomerService = request.app.state.customers
    return found


def _customer_of(text: str) -> str:
    try:
        return token(text)
    except InvalidIdError:
        raise no_such_customer() from None


def _etag(customer: CustomerDetails) -> str:
    return f'"{customer.generation}"'


def _shown(customer: CustomerDetails) -> Response[Any]:
    return answer(customer, headers={"ETag": _etag(customer)})


HANDLERS = (list_customers, create_customer, get_customer, patch_customer, close_customer)
