"""The ASGI app: routes, problems, documents."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Litestar, Response, get
from litestar.datastructures import State
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import ScalarRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme

from gateway import problems, routes
from gateway.auth import Authenticator
from gateway.bodies import StrictRequest
from gateway.service import VmService
from gateway.telemetry import Observed


@get("/openapi.json", include_in_schema=False, sync_to_thread=False)
def openapi_document(request: StrictRequest) -> Response[bytes]:
    """The OpenAPI document; it needs no token."""
    document = msgspec.json.encode(request.app.openapi_schema.to_schema())
    return Response(document, media_type="application/json")


def build(service: VmService, authenticator: Authenticator, *, max_body_bytes: int) -> Observed:
    """The app, with telemetry around it."""
    app = Litestar(
        [routes.router(), openapi_document],
        request_class=StrictRequest,
        exception_handlers={Exception: problems.answer},
        logging_config=None,
        request_max_body_size=max_body_bytes,
        state=State({"service": service, "authenticator": authenticator}),
        openapi_config=_documents(),
    )
    return Observed(app)


def _documents() -> OpenAPIConfig:
    bearer: dict[str, Any] = {"type": "http", "scheme": "bearer", "bearer_format": "JWT"}
    return OpenAPIConfig(
        title="decisec",
        version="1",
        description="MicroVMs on many hosts, metered each 100 ms. Errors are RFC 9457 problems.",
        path="/docs",
        render_plugins=[ScalarRenderPlugin(path="/")],
        components=Components(security_schemes={"bearer": SecurityScheme(**bearer)}),
        security=[{"bearer": []}],
    )
