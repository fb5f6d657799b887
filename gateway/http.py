"""The ASGI app: routes, problems, documents."""

from __future__ import annotations

from litestar import Litestar
from litestar.datastructures import State

from gateway import documents, problems, routes
from gateway.addresses import Addresses
from gateway.admission import Admission
from gateway.auth import Authenticator
from gateway.bodies import StrictRequest
from gateway.frontage import Frontage
from gateway.limits import Limits
from gateway.service import VmService
from gateway.settings import GatewaySettings
from gateway.telemetry import Observed


def build(
    service: VmService,
    authenticator: Authenticator,
    limits: Limits,
    admission: Admission,
    addresses: Addresses,
    settings: GatewaySettings,
) -> Observed:
    """The app, with telemetry around it."""
    state = State({"service": service, "authenticator": authenticator})
    app = Litestar(
        [routes.router(), documents.openapi_document, documents.assets()],
        request_class=StrictRequest,
        exception_handlers={Exception: problems.answer},
        logging_config=None,
        request_max_body_size=settings.max_body_bytes,
        state=state,
        openapi_config=documents.config(),
        plugins=[documents.Base64()],
    )
    frontage = Frontage(app, limits, admission, addresses)
    app.state.desk = frontage.desk
    return Observed(frontage)
