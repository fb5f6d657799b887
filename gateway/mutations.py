"""Around every HTTP request: its act and its key if it may change something, and what is audited.

Runs between the guard and the handler, and again when the answer stands; handlers know nothing of
it. The door on the bus does the same for its requests.
"""

from __future__ import annotations

from typing import Any, Self

from litestar import Request, Response
from litestar.exceptions import HTTPException

from gateway import acts, problems
from gateway.acts import Act
from gateway.auth import Principal
from gateway.errors import RefusedError
from gateway.frontage import ADDRESS
from gateway.idempotency import Keys, check_key, http_digest
from gateway.routes.common import COMMITS, known, wait_s_of, who
from gateway.trail import Refusal, Trail
from runtime.telemetry import trace_id
from schemas.audit import OPERATOR
from schemas.errors import ErrorCode
from schemas.idempotency import IDEMPOTENCY_HEADER, REPLAYED_HEADER, KeptAnswer

METHODS = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_OPERATORS = "/v1/admin/"
"""Where those may change something who are no customer."""

_TOLD = frozenset({ErrorCode.FORBIDDEN, ErrorCode.NOT_FOUND, ErrorCode.RATE_LIMITED})
"""Refusals of reads that are audited."""

_ANYBODYS = frozenset({ErrorCode.UNAUTHENTICATED, ErrorCode.RATE_LIMITED})
"""Refusals that are audited though it is not known who asked."""


class Mutations:
    """What is done around them.

    Args:
        keys: Where answers are kept.
        trail: Where acts and refusals are told.
    """

    def __init__(self, keys: Keys, trail: Trail) -> None:
        self._keys = keys
        self._trail = trail

    def __deepcopy__(self, _: Any) -> Self:
        """The same: Litestar copies the hooks of a router for each of its routes."""
        return self

    async def before(self, request: Request[Any, Any, Any]) -> Response[Any] | None:
        """Enter the act of a request that may change something, or give its earlier answer.

        Raises:
            RefusedError: BAD_REQUEST, IDEMPOTENCY_KEY_REUSED, REQUEST_IN_PROGRESS or UNAVAILABLE.
            TransientError: The keys cannot be had at the moment.
        """
        if request.method == "OPTIONS":
            # The framework's own answer knows one of the handlers at a path.
            return Response(None, status_code=204, headers=problems.allow(request))
        if request.method not in METHODS:
            return None
        principal = who(request)
        operators = request.scope["path"].startswith(_OPERATORS)
        if not principal.customer_id and not operators:
            raise RefusedError(ErrorCode.FORBIDDEN, "The token names no customer.")
        act = Act(
            # What operators do is no customer's to read, though their token may name one.
            customer_id=OPERATOR if operators else principal.customer_id,
            actor=principal.subject,
            action=_action(request),
            target=_target(request),
            door="http",
            address=_address(request),
            trace_id=trace_id(),
            begin=self._trail.begin,
        )
        acts.enter(act)
        given = await self._claim(request, principal, act)
        if given is None and not request.route_handler.opt.get(COMMITS):
            await acts.commit()
        return given

    async def after(self, response: Response[Any]) -> Response[Any]:
        """Keep a handler's answer under the request's key, and tell of its end."""
        act = acts.current()
        if act is None or REPLAYED_HEADER in response.headers:
            return response
        self._keep(act, response, None)
        if not act.committed:
            # Its service has nothing left to do, or has forgotten to tell of it.
            await acts.commit()
        self._trail.ended(act, response.status_code or 200)
        await self._trail.heard(act)
        return response

    def refused(self, request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
        """The problem that an error is, kept as the answer if it was decided on, and audited."""
        refused = problems.refusal(request, error)
        response = problems.answer(request, refused)
        act = acts.current()
        if act is not None:
            # What the framework itself refuses has not reached a service.
            self._keep(act, response, None if isinstance(error, HTTPException) else error)
        if act is not None and act.committed:
            self._trail.ended(act, response.status_code or 500, refused.code.value)
        else:
            self._tell(request, refused)
        return response

    def turned_away(self, address: str, refused: RefusedError) -> None:
        """Tell of a request that was refused before anything of it was read."""
        if refused.code in _ANYBODYS:
            self._trail.refused(
                Refusal(
                    customer_id="",
                    actor="",
                    action="authenticate",
                    target="",
                    door="http",
                    address=address,
                    trace_id="",
                    code=refused.code.value,
                    status=problems.status_of(refused),
                    single=False,
                )
            )

    async def _claim(
        self, request: Request[Any, Any, Any], principal: Principal, act: Act
    ) -> Response[Any] | None:
        keys = request.headers.getall(IDEMPOTENCY_HEADER.lower(), [])
        if not keys:
            return None
        if len(keys) > 1:
            raise RefusedError(ErrorCode.BAD_REQUEST, f"{IDEMPOTENCY_HEADER}: give one.")
        found = await self._keys.claim(
            act.customer_id,
            check_key(keys[0]),
            http_digest(
                principal.customer_id,
                request.method,
                request.scope["raw_path"],
                query=request.scope["query_string"],
                if_match=request.headers.get("if-match", ""),
                body=await request.body(),
            ),
            wait_s_of(request.headers.get("prefer", "")),
        )
        if not isinstance(found, KeptAnswer):
            act.take(found)
            return None
        return Response(
            found.body,
            status_code=found.status,
            headers={**found.headers, REPLAYED_HEADER: "true"},
            media_type=found.media_type,
        )

    def _keep(self, act: Act, response: Response[Any], error: Exception | None) -> None:
        if act.claim is None:
            return
        claim, act.claim = act.claim, None
        self._keys.settle(
            claim,
            KeptAnswer(
                status=response.status_code or 200,
                body=response.content if isinstance(response.content, bytes) else b"",
                media_type=str(response.media_type),
                headers={str(name): str(value) for name, value in response.headers.items()},
            ),
            error,
        )

    def _tell(self, request: Request[Any, Any, Any], refused: RefusedError) -> None:
        principal = known(request)
        mutation = request.method in METHODS
        if not (
            refused.code in _ANYBODYS if principal is None else mutation or refused.code in _TOLD
        ):
            return
        status = problems.status_of(refused)
        act = acts.current() if mutation else None
        asked_for = principal.customer_id if principal else ""
        self._trail.refused(
            Refusal(
                customer_id=act.customer_id if act is not None else asked_for,
                actor=principal.subject if principal else "",
                action=_action(request) if principal else "authenticate",
                target=_target(request),
                door="http",
                address=_address(request),
                trace_id=trace_id(),
                code=refused.code.value,
                status=status,
                single=mutation and status < 500,
            )
        )


def _action(request: Request[Any, Any, Any]) -> str:
    handler = request.scope.get("route_handler")
    name: str = getattr(getattr(handler, "fn", None), "__name__", "unmatched")
    return name.replace("_", "-")


def _target(request: Request[Any, Any, Any]) -> str:
    parameters = request.scope.get("path_params") or {}
    return " ".join(f"{name.removesuffix('_id')} {value}" for name, value in parameters.items())


def _address(request: Request[Any, Any, Any]) -> str:
    address: str = request.scope["state"].get(ADDRESS, "")
    return address
