"""What all routes share: who asks, what ids name, how answers look."""

from __future__ import annotations

import re
from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import Request, Response
from litestar.connection import ASGIConnection
from litestar.exceptions import NotFoundException
from litestar.handlers import BaseRouteHandler
from litestar.params import FromPath, HeaderParameter, QueryParameter

from gateway import sse
from gateway.auth import Authenticator, Principal
from gateway.background import Background
from gateway.bodies import StrictRequest
from gateway.errors import RefusedError, no_such_vm
from gateway.frontage import PRINCIPAL, Desk
from gateway.service import Outcome, VmService
from gateway.streams import token_ends
from schemas.api import FieldProblem, VmAndOperation, VmView
from schemas.codec import encode
from schemas.errors import ErrorCode, InvalidIdError
from schemas.ids import parse_uuid
from schemas.requests import MAX_WAIT_S
from schemas.vms import Timestamp

_WAIT = re.compile(r'(?:^|,)\s*wait\s*=\s*"?(\d{1,9})"?\s*(?=;|,|$)', re.IGNORECASE)
_MAX_IF_MATCH_CHARS = 256
_TAG = r'(?:W/)?"[\x21\x23-\x2b\x2d-\x7e]*"'
_ENTITY_TAGS = re.compile(rf"\s*{_TAG}(?:\s*,\s*{_TAG})*\s*")
_OUR_TAG = re.compile(r'"([1-9][0-9]{0,18})"')

COMMITS = "commits"
"""Key in a handler's `opt`: True if its service calls `acts.commit` before its first effect. For
all others that is done before they are called, refused or not."""

Id = FromPath[str]
Cursor = Annotated[
    str,
    QueryParameter(
        description="`next_cursor` of the page before; good with the same filters and sort only."
    ),
]
IfMatch = Annotated[
    str,
    HeaderParameter(
        name="If-Match", description="`ETag` of the VM as you know it: 412 if it has changed since."
    ),
]
IfMatchOf = Annotated[
    str,
    HeaderParameter(
        name="If-Match",
        description="`ETag` of it as you know it: 412 if it has changed since.",
        schema_extra={
            "pattern": rf"^(\*|{_TAG}(,{_TAG})*)?$",
            "maxLength": _MAX_IF_MATCH_CHARS,
        },
    ),
]
Token = FromPath[str]
"""A name in a path: of a customer, a host, a price plan."""
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
    background: Background = connection.app.state.background
    background.require_open()
    authenticator: Authenticator = connection.app.state.authenticator
    principal = await authenticator.principal(connection.headers.get("authorization"))
    connection.scope["state"][PRINCIPAL] = principal
    desk: Desk = connection.app.state.desk
    await desk.admit(connection.scope, principal.customer_id, connection.headers.get("prefer", ""))


def who(request: Request[Any, Any, Any]) -> Principal:
    """Whom the guard has let in."""
    principal: Principal = request.scope["state"][PRINCIPAL]
    return principal


def known(request: Request[Any, Any, Any]) -> Principal | None:
    """Whom the guard has let in, if it came to that."""
    principal: Principal | None = request.scope["state"].get(PRINCIPAL)
    return principal


def service(request: StrictRequest) -> VmService:
    """The service that the app was built around."""
    found: VmService = request.app.state.vms
    return found


def streaming(request: StrictRequest) -> bool:
    """Whether the caller wants a stream of events rather than one answer."""
    offered = ["application/json", sse.MEDIA_TYPE]
    return request.accept.best_match(offered) == sse.MEDIA_TYPE


def token_ending(request: StrictRequest) -> sse.Ending:
    """What ends a stream once the token that it was asked for with is no longer good."""
    authenticator: Authenticator = request.app.state.authenticator
    return token_ends(authenticator, request.headers.get("authorization"), who(request))


def instant(field: str, text: str) -> Timestamp:
    """A time in a query parameter.

    Raises:
        RefusedError: BAD_REQUEST.
    """
    try:
        return msgspec.convert(text, Timestamp)
    except msgspec.ValidationError:
        raise wrong(
            field, "must be a time as in RFC 3339, with offset: 2026-01-31T00:00:00Z"
        ) from None


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
    headers = {
        "Location": f"/v1/operations/{outcome.body.operation.operation_id}",
        "ETag": etag(outcome.body.vm),
    }
    if wait_s > 0:
        headers["Preference-Applied"] = f"wait={wait_s:.0f}"
    if outcome.finished and done_status == 201:
        headers["Location"] = f"/v1/vms/{outcome.body.vm.vm_id}"
    return answer(outcome.body, done_status if outcome.finished else 202, headers)


def etag(vm: VmView) -> str:
    """The tag of what can be changed by `PATCH`; what else is shown of a VM does not count."""
    return f'"{vm.generation}"'


def generations_of(if_match: str) -> frozenset[int] | None:
    """What an `If-Match` header allows; None for anything.

    Raises:
        RefusedError: BAD_REQUEST. It is no such header.
    """
    if not if_match or if_match.strip() == "*":
        return None
    if len(if_match) > _MAX_IF_MATCH_CHARS or not _ENTITY_TAGS.fullmatch(if_match):
        raise wrong("If-Match", 'must be `*` or entity tags, as in: "3"')
    # Other tags than ours are well-formed and match nothing; weak ones never do (RFC 9110).
    tags = (tag.strip() for tag in if_match.split(","))
    return frozenset(int(found[1]) for tag in tags if (found := _OUR_TAG.fullmatch(tag)))


def answer(
    message: msgspec.Struct, status: int = 200, headers: dict[str, str] | None = None
) -> Response[Any]:
    """A message as the body."""
    return Response(
        encode(message), status_code=status, headers=headers, media_type="application/json"
    )
