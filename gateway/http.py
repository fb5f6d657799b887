"""The ASGI app: routes, problems, documents."""

from __future__ import annotations

from litestar import Litestar
from litestar.config.cors import CORSConfig
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
    cors_origins: str = "",
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
        cors_config=_cors(cors_origins.split(",")) if cors_origins else None,
    )
    return Observed(app)


def _cors(origins: list[str]) -> CORSConfig:
    """What pages of these origins may do; tokens are theirs to send, there are no cookies."""
    return CORSConfig(
        allow_origins=origins,
        allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
        allow_headers=[
            "Authorization", "Content-Type", "Idempotency-Key", "If-Match", "If-None-Match",
            "Last-Event-ID", "Prefer", "traceparent", "tracestate",
        ],
        expose_headers=[
            "ETag", "Idempotency-Replayed", "Location", "Preference-Applied", "Retry-After",
            "Deprecation", "Sunset", "Link", "WWW-Authenticate", "RateLimit", "RateLimit-Policy",
        ],
    )  # fmt: skip
