"""The ASGI app: routes, problems, documents."""

from __future__ import annotations

from litestar import Litestar
from litestar.datastructures import State

from gateway import documents, problems, routes
from gateway.auth import Authenticator
from gateway.bodies import StrictRequest
from gateway.events import EventService
from gateway.metrics import MetricService
from gateway.service import VmService
from gateway.telemetry import Observed
from gateway.usage_windows import UsageWindowService


def build(
    service: VmService,
    authenticator: Authenticator,
    *,
    events: EventService,
    metrics: MetricService,
    usage_windows: UsageWindowService,
    max_body_bytes: int,
) -> Observed:
    """The app, with telemetry around it."""
    app = Litestar(
        [routes.router(), documents.openapi_document, documents.assets()],
        request_class=StrictRequest,
        exception_handlers={Exception: problems.answer},
        logging_config=None,
        request_max_body_size=max_body_bytes,
        state=State(
            {
                "service": service,
                "authenticator": authenticator,
                "events": events,
                "metrics": metrics,
                "usage_windows": usage_windows,
            }
        ),
        openapi_config=documents.config(),
        plugins=[documents.Base64()],
    )
    return Observed(app)
