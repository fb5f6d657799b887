"""The HTTP routes: what is asked, in; what has come of it, out. No decision is made here."""

from __future__ import annotations

from litestar import Router

from gateway.routes import account, events, metrics, operations, usage, vms
from gateway.routes.common import authenticated


def router() -> Router:
    """All routes of version 1, behind the guard."""
    return Router(
        "/v1",
        guards=[authenticated],
        route_handlers=[
            *vms.HANDLERS,
            *operations.HANDLERS,
            *usage.HANDLERS,
            *events.HANDLERS,
            *metrics.HANDLERS,
            *account.HANDLERS,
        ],
    )
