"""What all routes for operators share: nobody else gets past the guard."""

from __future__ import annotations

from typing import Any

from litestar import Router
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from gateway.auth import Principal, Scope
from gateway.frontage import PRINCIPAL
from gateway.routes import customers, hosts, price_plans


async def operators_only(
    connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler
) -> None:
    """Guard behind `authenticated`: before a body is read, whatever is in the path."""
    principal: Principal = connection.scope["state"][PRINCIPAL]
    principal.require(Scope.ADMIN)


def router() -> Router:
    """All routes for operators."""
    return Router(
        "/admin",
        guards=[operators_only],
        route_handlers=[*customers.HANDLERS, *hosts.HANDLERS, *price_plans.HANDLERS],
    )
