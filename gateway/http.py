"""The ASGI app: routes, problems, documents."""

from __future__ import annotations

from typing import Any

from litestar import Litestar
from litestar.datastructures import State

from gateway import documents, problems, routes
from gateway.auth import Authenticator
from gateway.bodies import StrictRequest
from gateway.service import VmService
from gateway.telemetry import Observed


def build(
    service: VmService, authenticator: Authenticator, *, max_body_bytes: int, **state: Any
) -> Observed:
    """The app, with telemetry around it.

    Args:
        service: Does what is asked.
        authenticator: Says who asks.
        max_body_bytes: Larger bodies are refused.
        state: What routes find in the app's state besides: services by their names.
    """
    app = Litestar(
        [routes.router(), documents.openapi_document, documents.assets()],
        request_class=StrictRequest,
        exception_handlers={Exception: problems.answer},
        logging_config=None,
        request_max_body_size=max_body_bytes,
        state=State({"service": service, "authenticator": authenticator, **state}),
        openapi_config=documents.config(),
        plugins=[documents.Base64()],
    )
    return Observed(app)
