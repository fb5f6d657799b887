"""Price plans: kept and shown. What things cost is told elsewhere."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import datetime

import msgspec

from gateway import acts
from gateway.auth import Principal, Scope
from gateway.cursors import digest, name_only, seal, unseal
from gateway.errors import RefusedError
from runtime.buckets import Bucket, Mirror, RevisionConflictError
from runtime.bus import Bus
from runtime.clock import utc_now
from schemas.api import FieldProblem
from schemas.errors import ErrorCode
from schemas.price_plans import (
    DEFAULT_PLAN,
    MAX_VERSIONS,
    CreatePricePlanRequest,
    PricePlan,
    PricePlanDetails,
    PricePlanList,
    PricePlanView,
    Prices,
    PriceVersion,
    PriceVersionRequest,
    decode_price_plan,
)
from schemas.subjects import PRICE_PLANS

_SHOWN_WITHIN_S = 1.0


class PricePlanService:
    """Every question and every change, for principals with `Scope.ADMIN`.

    Each method raises RefusedError for what it will not do, and TransientError when the bus
    cannot be reached. Plans are never removed, and a version is never changed.

    Args:
        bus: The connection.
    """

    def __init__(self, bus: Bus) -> None:
        self._bucket = Bucket(bus, PRICE_PLANS, decode_price_plan)
        self._mirror = Mirror(self._bucket)

    async def run(self) -> None:
        """Follow the bucket until cancelled."""
        await self._mirror.run()

    async def synced(self) -> None:
        """Return once everything that stood at the start is there."""
        await self._mirror.synced()

    async def check(self, plan_id: str) -> None:
        """Go on only with a plan that a customer can be given.

        Raises:
            RefusedError: UNKNOWN_PRICE_PLAN.
        """
        if plan_id == DEFAULT_PLAN or plan_id in self._mirror.values:
            return
        # Unknown here is not yet proof: another gateway may have just made it.
        if await self._bucket.get(plan_id) is None:
            message = f"there is no price plan {plan_id}"
            raise RefusedError(
                ErrorCode.UNKNOWN_PRICE_PLAN,
                f"$.price_plan: {message}",
                fields=(FieldProblem(field="$.price_plan", message=message),),
            )

    def page(self, principal: Principal, *, cursor: str, limit: int) -> PricePlanList:
        """Plans by id.

        Raises:
            RefusedError: BAD_REQUEST for a wrong cursor.
        """
        principal.require(Scope.ADMIN)
        sealed_with = digest("price-plans")
        begin = unseal(sealed_with, cursor)
        last = begin.name if begin else ""
        names = sorted(name for name in self._mirror.values if name > last)
        now = utc_now()
        found = tuple(_view(self._mirror.values[name], now) for name in names[:limit])
        more = len(names) > limit
        next_cursor = seal(sealed_with, name_only(found[-1].plan_id)) if more else ""
        return PricePlanList(price_plans=found, next_cursor=next_cursor)

    async def get(self, principal: Principal, plan_id: str) -> PricePlanDetails:
        """One plan as it stands on the server."""
        principal.require(Scope.ADMIN)
        entry = await self._bucket.get(plan_id)
        if entry is None:
            raise no_such_plan()
        return _details(entry.value)

    async def create(
        self, principal: Principal, request: CreatePricePlanRequest
    ) -> PricePlanDetails:
        """Enter a plan with its first version.

        Raises:
            RefusedError: BAD_REQUEST for the time, CONFLICT if there is one of this id.
        """
        principal.require(Scope.ADMIN)
        _check_hour(request.valid_from)
        now = utc_now()
        plan = PricePlan(
            plan_id=request.plan_id,
            name=request.name,
            currency=request.currency,
            versions=(_version(1, request.valid_from, request.prices, now, principal),),
            created_at=now,
        )
        await acts.commit(target=f"price plan {plan.plan_id}")
        try:
            revision = await self._bucket.create(plan.plan_id, plan)
        except RevisionConflictError:
            entry = await self._bucket.get(plan.plan_id)
            ours = entry is not None and acts.repeated() and _same(entry.value, request)
            if entry is None or not ours:
                raise RefusedError(
                    ErrorCode.CONFLICT, f"There is a price plan {plan.plan_id} already."
                ) from None
            plan, revision = entry.value, entry.revision
        await self._shown(revision)
        return _details(plan)

    async def add(
        self,
        principal: Principal,
        plan_id: str,
        request: PriceVersionRequest,
        generations: frozenset[int] | None = None,
    ) -> PricePlanDetails:
        """Add a version that becomes valid later than all there are.

        Raises:
            RefusedError: NOT_FOUND, PRECONDITION_FAILED, BAD_REQUEST for the time; CONFLICT if it
                is in the past or not later than the last version, or there are too many.
            TransientError: Also if somebody else adds one at the same moment.
        """
        principal.require(Scope.ADMIN)
        _check_hour(request.valid_from)
        entry = await self._bucket.get(plan_id)
        if entry is None:
            raise no_such_plan()
        plan, last, now = entry.value, entry.value.versions[-1], utc_now()
        if acts.repeated() and (last.valid_from, last.prices) == (
            request.valid_from,
            request.prices,
        ):
            return _details(plan)
        if generations is not None and last.version not in generations:
            raise RefusedError(
                ErrorCode.PRECONDITION_FAILED,
                "The price plan has changed since you looked at it. Look again.",
            )
        if request.valid_from <= last.valid_from or request.valid_from < now:
            raise RefusedError(
                ErrorCode.CONFLICT,
                "A version becomes valid later than the one before "
                f"({last.valid_from.isoformat()}), and not in the past: what was used then has "
                "its price.",
            )
        if last.version >= MAX_VERSIONS:
            raise RefusedError(
                ErrorCode.CONFLICT, f"The plan has {MAX_VERSIONS} versions. Make another one."
            )
        version = _version(last.version + 1, request.valid_from, request.prices, now, principal)
        await acts.commit(target=f"price plan {plan_id}")
        grown = msgspec.structs.replace(plan, versions=(*plan.versions, version))
        try:
            revision = await self._bucket.update(plan_id, grown, entry.revision)
        except RevisionConflictError:
            raise RefusedError(
                ErrorCode.CONFLICT, "Somebody else has just added a version. Look again."
            ) from None
        await self._shown(revision)
        return _details(grown)

    async def _shown(self, revision: int) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_SHOWN_WITHIN_S):
                await self._mirror.reached(revision)


def no_such_plan() -> RefusedError:
    """A plan that was never made."""
    return RefusedError(ErrorCode.NOT_FOUND, "There is no such price plan.")


def _version(
    number: int, valid_from: datetime, prices: Prices, now: datetime, principal: Principal
) -> PriceVersion:
    return PriceVersion(
        version=number,
        valid_from=valid_from,
        prices=prices,
        created_at=now,
        created_by=principal.subject,
    )


def _check_hour(valid_from: datetime) -> None:
    """Usage is kept by the hour for years: a price cannot change within one."""
    if valid_from.timestamp() % 3600:
        message = "must be a whole hour, as in 2026-02-01T00:00:00Z"
        raise RefusedError(
            ErrorCode.BAD_REQUEST,
            f"$.valid_from: {message}",
            fields=(FieldProblem(field="$.valid_from", message=message),),
        )


def _same(plan: PricePlan, request: CreatePricePlanRequest) -> bool:
    first = plan.versions[0]
    return (plan.name, plan.currency, first.valid_from, first.prices) == (
        request.name, request.currency, request.valid_from, request.prices,
    )  # fmt: skip


def _view(plan: PricePlan, now: datetime) -> PricePlanView:
    return PricePlanView(
        plan_id=plan.plan_id,
        name=plan.name,
        currency=plan.currency,
        created_at=plan.created_at,
        current=plan.at(now),
        next=next((one for one in plan.versions if one.valid_from > now), None),
        generation=plan.versions[-1].version,
    )


def _details(plan: PricePlan) -> PricePlanDetails:
    view = _view(plan, utc_now())
    given = {name: getattr(view, name) for name in PricePlanView.__struct_fields__}
    return PricePlanDetails(**given, versions=plan.versions)
