"""The HTTP routes: what is asked, in; what has come of it, out. No decision is made here."""

from __future__ import annotations

from litestar import Router
from litestar.types import AfterRequestHookHandler, BeforeRequestHookHandler

from gateway.routes import (
    account,
    admin,
    audit,
    events,
    images,
    metrics,
    operations,
    peers,
    snapshots,
    usage,
    vms,
)
from gateway.routes.common import authenticated


def router(before: BeforeRequestHookHandler, after: AfterRequestHookHandler) -> Router:
    """All routes of version 1, behind the guard, with what is done before and after each."""
    return Router(
        "/v1",
        guards=[authenticated],
        before_request=before,
        after_request=after,
        route_handlers=[
            *vms.HANDLERS,
            *snapshots.HANDLERS,
            *images.HANDLERS,
            *operations.HANDLERS,
            *usage.HANDLERS,
            *events.HANDLERS,
            *metrics.HANDLERS,
            *account.HANDLERS,
            *audit.HANDLERS,
            *peers.HANDLERS,
            admin.router(),
        ],
    )
