"""Around every request: a span, two metrics, security headers, and a last line of defence."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import structlog
from opentelemetry.trace import SpanKind, Status, StatusCode

from gateway import documents, sse
from gateway.deprecation import DEPRECATED, Deprecation
from runtime.telemetry import meter, span

_log = structlog.get_logger("decisec.http")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]

_PLAIN = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))
_API = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"x-frame-options", b"DENY"),
)
_DOCUMENTS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
        b"img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        b"frame-ancestors 'none'",
    ),
)
"""The page's own script stands in it; nothing comes from, or goes to, anywhere else."""
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Observed:
    """Wraps the ASGI app; label values are route templates and methods, so they are bounded.

    Attributes:
        app: What is wrapped.
    """

    def __init__(self, app: App) -> None:
        self.app = app
        self._requests = meter().create_counter(
            "decisec_http_requests", description="Requests by route, method and status"
        )
        self._duration = meter().create_histogram(
            "decisec_http_request_duration",
            unit="s",
            description="Request in to response sent, by route and method",
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or one turn of the lifespan protocol."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in (b"traceparent", b"tracestate")
        }
        method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        status = 500
        scope[sse.TRANSPORT] = sse.transport_of(send)
        special = _DOCUMENTS if scope["path"].startswith(documents.PATH) else _API

        async def observed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                handler = scope.get("route_handler")
                going: Deprecation | None = handler.opt.get(DEPRECATED) if handler else None
                message = {
                    **message,
                    "headers": [
                        *message.get("headers", ()),
                        *_PLAIN,
                        *special,
                        *(going.headers if going else ()),
                    ],
                }
            await send(message)

        began = time.perf_counter()
        with span(f"{method}", kind=SpanKind.SERVER, parent=headers) as current:
            await self.app(scope, receive, observed_send)
            route = scope.get("path_template") or "unmatched"
            current.update_name(f"{method} {route}")
            current.set_attributes(
                {
                    "http.request.method": method,
                    "http.route": route,
                    "http.response.status_code": status,
                }
            )
            if status >= 500:
                current.set_status(Status(StatusCode.ERROR))
        self._requests.add(1, {"route": route, "method": method, "status": str(status)})
        self._duration.record(time.perf_counter() - began, {"route": route, "method": method})
