"""RFC 9457 problems: one answer format for everything that goes wrong over HTTP."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from opentelemetry import trace

from gateway.errors import RETRY_AFTER_S, RefusedError, unavailable
from runtime.errors import TransientError
from schemas.api import FieldProblem, Problem
from schemas.codec import encode
from schemas.errors import ErrorCode

_log = structlog.get_logger("decisec.http")

MEDIA_TYPE = "application/problem+json"

STATUS_OF: Mapping[ErrorCode, HTTPStatus] = {
    ErrorCode.BAD_REQUEST: HTTPStatus.BAD_REQUEST,
    ErrorCode.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    ErrorCode.FORBIDDEN: HTTPStatus.FORBIDDEN,
    ErrorCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    ErrorCode.CONFLICT: HTTPStatus.CONFLICT,
    ErrorCode.PRECONDITION_FAILED: HTTPStatus.PRECONDITION_FAILED,
    ErrorCode.ILLEGAL_TRANSITION: HTTPStatus.CONFLICT,
    ErrorCode.PAYLOAD_TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    ErrorCode.UNSUPPORTED: HTTPStatus.UNPROCESSABLE_ENTITY,
    # The request was right and may succeed later: not the caller's conflict.
    ErrorCode.NO_CAPACITY: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorCode.UNKNOWN_IMAGE: HTTPStatus.UNPROCESSABLE_ENTITY,
    ErrorCode.UNKNOWN_PRICE_PLAN: HTTPStatus.UNPROCESSABLE_ENTITY,
    ErrorCode.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
    ErrorCode.RATE_LIMITED: HTTPStatus.TOO_MANY_REQUESTS,
    ErrorCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorCode.HYPERVISOR_FAILED: HTTPStatus.BAD_GATEWAY,
    ErrorCode.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
    ErrorCode.IDEMPOTENCY_KEY_REUSED: HTTPStatus.UNPROCESSABLE_ENTITY,
    ErrorCode.REQUEST_IN_PROGRESS: HTTPStatus.CONFLICT,
}
"""The status of each code, unless a refusal names another."""

_TITLES: Mapping[ErrorCode, str] = {
    code: code.value.replace("_", " ").capitalize() for code in ErrorCode
}
_CODE_OF_STATUS: Mapping[int, ErrorCode] = {
    400: ErrorCode.BAD_REQUEST,
    404: ErrorCode.NOT_FOUND,
    405: ErrorCode.UNSUPPORTED,
    413: ErrorCode.PAYLOAD_TOO_LARGE,
    415: ErrorCode.UNSUPPORTED,
}
_DETAIL_OF_STATUS: Mapping[int, str] = {
    404: "There is nothing at this path.",
    405: "This path does not take this method.",
    413: "The body is larger than this service takes.",
}
_QUERY_NAMES: Mapping[str, str] = {
    "vm_state": "state",
    "operation_status": "status",
    "customer_status": "status",
    "host_state": "state",
    "vm_ids": "vm_id",
    "labels": "label",
    "answer_format": "format",
    "types": "type",
    "metric_names": "metric",
}
"""Query parameters that handlers know by another name."""


def status_of(refused: RefusedError) -> int:
    """The HTTP status of a refusal."""
    return int(refused.status or STATUS_OF[refused.code])


def answer(request: Request[Any, Any, Any], refused: RefusedError) -> Response[bytes]:
    """The response to a refusal."""
    status, headers, body = described(refused, request.scope["path"])
    return Response(body, status_code=status, headers=headers, media_type=MEDIA_TYPE)


def described(refused: RefusedError, path: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a refusal."""
    status = status_of(refused)
    context = trace.get_current_span().get_span_context()
    problem = Problem(
        type=f"urn:decisec:problem:{refused.code.value}",
        title=_TITLES[refused.code],
        status=status,
        code=refused.code.value,
        detail=refused.message,
        instance=path[:512],
        trace_id=f"{context.trace_id:032x}" if context.is_valid else "",
        errors=refused.fields,
    )
    headers = dict(refused.headers)
    if refused.retry_after_s is not None or status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(math.ceil(refused.retry_after_s or RETRY_AFTER_S))
    return status, headers, encode(problem)


def refusal(request: Request[Any, Any, Any], error: Exception) -> RefusedError:
    """What a request is refused with, whatever it has raised."""
    match error:
        case RefusedError():
            return error
        case TransientError():
            _log.warning("request.deferred", error=str(error))
            return unavailable()
        case ValidationException():
            return RefusedError(
                ErrorCode.BAD_REQUEST, "The request is not valid.", fields=_fields(error.extra)
            )
        case HTTPException() if error.status_code in _CODE_OF_STATUS:
            code = _CODE_OF_STATUS[error.status_code]
            headers = allow(request) if error.status_code == 405 else {}
            if error.status_code == 413:
                # Or the server would go on reading what nobody wants.
                headers["Connection"] = "close"
            return RefusedError(
                code,
                _DETAIL_OF_STATUS.get(error.status_code, "The request is not valid."),
                status=error.status_code,
                headers=headers,
            )
        case _:
            # The log has the traceback; the caller gets the trace id only.
            _log.error("request.crashed", exc_info=error)
            return RefusedError(ErrorCode.INTERNAL, "Something went wrong here.")


def _fields(extra: Any) -> tuple[FieldProblem, ...]:
    if not isinstance(extra, list):
        return ()
    found = []
    for item in extra:
        if not isinstance(item, dict):
            continue
        key = str(item.get("key", ""))
        if key == "data":
            found.append(FieldProblem(field="$", message="A JSON body is needed."))
        else:
            name = _QUERY_NAMES.get(key, key)
            found.append(FieldProblem(field=name, message=str(item.get("message", ""))))
    return tuple(found)


def allow(request: Request[Any, Any, Any]) -> dict[str, str]:
    """RFC 9110: a 405 says what is allowed."""
    path = request.scope["path"].rstrip("/") or "/"
    methods: set[str] = set()
    for route in request.app.routes:
        pattern = re.sub(r"\\\{[^/]+?\\\}", "[^/]+", re.escape(route.path_format))
        if re.fullmatch(pattern, path):
            methods.update(getattr(route, "methods", ()))
    return {"Allow": ", ".join(sorted(methods))} if methods else {}
