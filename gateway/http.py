"""The ASGI app: routes, problems, documents."""

from __future__ import annotations

from litestar import Litestar
from litestar.datastructures import State

from gateway import documents, routes
from gateway.audit_log import AuditLog
from gateway.auth import Authenticator
from gateway.bodies import StrictRequest
from gateway.mutations import Mutations
from gateway.service import VmService
from gateway.telemetry import Observed


def build(
    service: VmService,
    authenticator: Authenticator,
    mutations: Mutations,
    audit_log: AuditLog,
    *,
    max_body_bytes: int,
) -> Observed:
    """The app, with telemetry around it."""
    app = Litestar(
        [
            routes.router(mutations.before, mutations.after),
            documents.openapi_document,
            documents.assets(),
        ],
        request_class=StrictRequest,
        exception_handlers={Exception: mutations.refused},
        logging_config=None,
        request_max_body_size=max_body_bytes,
        state=State({"service": service, "authenticator": authenticator, "audit_log": audit_log}),
        openapi_config=documents.config(),
        plugins=[documents.Base64()],
    )
    return Observed(app)
