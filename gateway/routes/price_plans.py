"""Price plans, for operators: looked at, entered, given further versions."""

from __future__ import annotations

from typing import Annotated, Any

from litestar import Response, get, post
from litestar.params import JSONBody, QueryParameter

from gateway.bodies import BODY, StrictRequest
from gateway.price_plans import PricePlanService, no_such_plan
from gateway.routes import examples_plans as examples
from gateway.routes.common import COMMITS, Cursor, IfMatchOf, Token, answer, generations_of, who
from schemas.errors import InvalidIdError
from schemas.ids import token
from schemas.price_plans import (
    MAX_PLAN_PAGE,
    CreatePricePlanRequest,
    PricePlanDetails,
    PricePlanList,
    PriceVersionRequest,
)

Limit = Annotated[int, QueryParameter(ge=1, le=MAX_PLAN_PAGE, description="Plans on a page.")]


@get("/price-plans", summary="List price plans", operation_class=examples.plan_list)
async def list_price_plans(
    request: StrictRequest, limit: Limit = 100, cursor: Cursor = ""
) -> Response[PricePlanList]:
    """Plans with the prices of now and those that come next, by id."""
    return answer(plans(request).page(who(request), cursor=cursor, limit=limit))


@post(
    "/price-plans",
    opt={BODY: CreatePricePlanRequest, COMMITS: True},
    summary="Enter a price plan",
    operation_class=examples.new_plan,
)
async def create_price_plan(
    request: StrictRequest, data: JSONBody[CreatePricePlanRequest]
) -> Response[PricePlanDetails]:
    """A plan with its first version. Prices are decimal numbers as text, each for a stated unit.

    A plan is never removed, and a version never changed: what was used under it has its price.
    """
    return _shown(await plans(request).create(who(request), data), 201)


@get(
    "/price-plans/{plan_id:str}",
    summary="Look at a price plan",
    operation_class=examples.plan,
)
async def get_price_plan(request: StrictRequest, plan_id: Token) -> Response[PricePlanDetails]:
    """One plan with all its versions."""
    return _shown(await plans(request).get(who(request), _plan_of(plan_id)))


@post(
    "/price-plans/{plan_id:str}/versions",
    opt={BODY: PriceVersionRequest, COMMITS: True},
    summary="Give a price plan other prices",
    operation_class=examples.new_version,
)
async def add_price_plan_version(
    request: StrictRequest,
    plan_id: Token,
    data: JSONBody[PriceVersionRequest],
    if_match: IfMatchOf = "",
) -> Response[PricePlanDetails]:
    """From `valid_from` on: a whole hour that is not in the past, behind all versions there are.

    It takes the place of all prices: a meter that is left out costs nothing from then on.
    """
    generations = generations_of(if_match)
    return _shown(await plans(request).add(who(request), _plan_of(plan_id), data, generations), 201)


def plans(request: StrictRequest) -> PricePlanService:
    """The service that the app was built around."""
    found: PricePlanService = request.app.state.price_plans
    return found


def _plan_of(text: str) -> str:
    try:
        return token(text)
    except InvalidIdError:
        raise no_such_plan() from None


def _shown(plan: PricePlanDetails, status: int = 200) -> Response[Any]:
    headers = {"ETag": f'"{plan.generation}"'}
    if status == 201:
        headers["Location"] = f"/v1/admin/price-plans/{plan.plan_id}"
    return answer(plan, status, headers)


HANDLERS = (list_price_plans, create_price_plan, get_price_plan, add_price_plan_version)
