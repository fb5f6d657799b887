"""The ASGI app: routes, problems, documents."""

from __future__ import annotations

from dataclasses import dataclass, fields

from litestar import Litestar
from litestar.datastructures import State

from gateway import documents, routes
from gateway.addresses import Addresses
from gateway.admission import Admission
from gateway.auth import Authenticator
from gateway.background import Background
from gateway.bodies import StrictRequest
from gateway.events import EventService
from gateway.frontage import Frontage
from gateway.idempotency import Keys
from gateway.images import ImageService
from gateway.limits import Limits
from gateway.metrics import MetricService
from gateway.mutations import Mutations
from gateway.operation_service import OperationService
from gateway.service import VmService
from gateway.snapshots import SnapshotService
from gateway.telemetry import Observed
from gateway.usage_windows import UsageWindowService


@dataclass(frozen=True, slots=True)
class Services:
    """What the routes call. Each stands under its name in the app's state."""

    background: Background
    vms: VmService
    keys: Keys
    events: EventService
    metrics: MetricService
    usage_windows: UsageWindowService
    operations: OperationService
    snapshots: SnapshotService
    images: ImageService


def build(
    services: Services,
    authenticator: Authenticator,
    limits: Limits,
    admission: Admission,
    addresses: Addresses,
    *,
    max_body_bytes: int,
) -> Observed:
    """The app, with telemetry around it."""
    mutations = Mutations(services.keys)
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
    )
    frontage = Frontage(app, limits, admission, addresses)
    app.state.desk = frontage.desk
    return Observed(frontage)
