"""What all routes share: who asks, what ids name, how answers look."""

from __future__ import annotations

import re
from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import Response
from litestar.connection import ASGIConnection
from litestar.exceptions import NotFoundException
from litestar.handlers import BaseRouteHandler
from litestar.params import FromPath, HeaderParameter

from gateway.auth import Authenticator, Principal
from gateway.bodies import StrictRequest
from gateway.errors import RefusedError, no_such_vm
from gateway.frontage import PRINCIPAL, Desk
from gateway.service import MAX_WAIT_S, Outcome, VmService
from schemas.api import FieldProblem, VmAndOperation
from schemas.codec import encode
from schemas.errors import ErrorCode, InvalidIdError
from schemas.ids import parse_uuid

_WAIT = re.compile(r'(?:^|,)\s*wait\s*=\s*"?(\d{1,9})"?\s*(?=;|,|$)', re.IGNORECASE)

Id = FromPath[str]
Prefer = Annotated[
    str, HeaderParameter(name="Prefer", description="`wait=N`: wait up to N seconds, at most 60.")
]


async def authenticated(
    connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler
) -> None:
    """Guard: go on only with a good token, and only for a path in its one spelling."""
    raw: bytes = connection.scope["raw_path"]
    if b"%" in raw or b"//" in raw or raw.endswith(b"/"):
        # The router would tidy these up; no path of this API needs them.
        raise NotFoundException
    authenticator: Authenticator = connection.app.state.authenticator
    principal = await authenticator.principal(connection.headers.get("authorization"))
    connection.scope["state"][PRINCIPAL] = principal
    desk: Desk = connection.app.state.desk
    await desk.admit(connection.scope, principal.customer_id, connection.headers.get("prefer", ""))


def who(request: StrictRequest) -> Principal:
    """Whom the guard has let in."""
    principal: Principal = request.scope["state"][PRINCIPAL]
    return principal


def service(request: StrictRequest) -> VmService:
    """The service that the app was built around."""
    found: VmService = request.app.state.service
    return found


def vm_of(text: str) -> UUID:
    """The id in a path.

    Raises:
        RefusedError: NOT_FOUND.
    """
    try:
        return parse_uuid(text)
    except InvalidIdError:
        # Whatever is no id names no VM: the same answer as for one that is missing.
        raise no_such_vm() from None


def wrong(field: str, message: str) -> RefusedError:
    """The refusal of a request for one of its fields."""
    return RefusedError(
        ErrorCode.BAD_REQUEST,
        f"{field}: {message}",
        fields=(FieldProblem(field=field, message=message),),
    )


def query_id(field: str, text: str) -> UUID:
    """The id in a query parameter.

    Raises:
        RefusedError: BAD_REQUEST.
    """
    try:
        return parse_uuid(text)
    except InvalidIdError as error:
        raise wrong(field, str(error)) from None


def wait_s_of(prefer: str) -> float:
    """How long the caller wants to wait, by RFC 7240; s."""
    match = _WAIT.search(prefer)
    return min(float(match[1]), MAX_WAIT_S) if match else 0.0


def mutation(outcome: Outcome, wait_s: float, done_status: int) -> Response[VmAndOperation]:
    """The answer to a mutation: done, or under way."""
    headers = {"Location": f"/v1/operations/{outcome.body.operation.operation_id}"}
    if wait_s > 0:
        headers["Preference-Applied"] = f"wait={wait_s:.0f}"
    if outcome.finished and done_status == 201:
        headers["Location"] = f"/v1/vms/{outcome.body.vm.vm_id}"
    return answer(outcome.body, done_status if outcome.finished else 202, headers)


def answer(
    message: msgspec.Struct, status: int = 200, headers: dict[str, str] | None = None
) -> Response[Any]:
    """A message as the body."""
    return Response(
        encode(message), status_code=status, headers=headers, media_type="application/json"
    )
