"""The ASGI app: routes, problems, documents."""

from __future__ import annotations

from dataclasses import dataclass, fields

from litestar import Litestar
from litestar.config.cors import CORSConfig
from litestar.datastructures import State

from gateway import documents, routes
from gateway.addresses import Addresses
from gateway.admission import Admission
from gateway.audit_log import AuditLog
from gateway.auth import Authenticator
from gateway.background import Background
from gateway.bodies import StrictRequest
from gateway.customers import CustomerService
from gateway.events import EventService
from gateway.frontage import Frontage
from gateway.hosts import HostService
from gateway.images import ImageService
from gateway.limits import Limits
from gateway.metrics import MetricService
from gateway.mutations import Mutations
from gateway.operation_service import OperationService
from gateway.peers import PeerService
from gateway.price_plans import PricePlanService
from gateway.service import VmService
from gateway.snapshots import SnapshotService
from gateway.telemetry import Observed
from gateway.usage_reports import UsageReportService
from gateway.usage_windows import UsageWindowService


@dataclass(frozen=True, slots=True)
class Services:
    """What the routes call. Each stands under its name in the app's state."""

    background: Background
    vms: VmService
    mutations: Mutations
    events: EventService
    metrics: MetricService
    usage_reports: UsageReportService
    usage_windows: UsageWindowService
    operations: OperationService
    snapshots: SnapshotService
    images: ImageService
    audit_log: AuditLog
    customers: CustomerService
    hosts: HostService
    price_plans: PricePlanService
    peers: PeerService


def build(
    services: Services,
    authenticator: Authenticator,
    limits: Limits,
    admission: Admission,
    addresses: Addresses,
    *,
    max_body_bytes: int,
    cors_origins: str = "",
) -> Observed:
    """The app, with telemetry around it."""
    mutations = services.mutations
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
        state=State(
            {
                "authenticator": authenticator,
                **{one.name: getattr(services, one.name) for one in fields(services)},
            }
        ),
        openapi_config=documents.config(),
        plugins=[documents.Base64()],
        cors_config=_cors(cors_origins.split(",")) if cors_origins else None,
    )
    frontage = Frontage(app, limits, admission, addresses, mutations.turned_away)
    app.state.desk = frontage.desk
    return Observed(frontage)


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
