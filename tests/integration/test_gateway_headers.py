"""Headers around every answer: what browsers may do, what they must not, and what will go."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from litestar import Litestar, get
from litestar.exceptions import NotFoundException

from gateway.deprecation import deprecated
from gateway.settings import GatewaySettings
from gateway.telemetry import Observed
from tests.support.gateway import stack
from tests.support.tokens import bearer

HOME = "https://console.example.com"
ALLOWED = f"{HOME},http://localhost:3000"
HOSTILE = (
    "https://evil.example.com",
    f"{HOME}.evil.example.com",
    "https://consolexexample.com",
    "http://console.example.com",
    f"{HOME}:8443",
    "https://evil-console.example.com",
    "null",
)


async def preflight(api: httpx.AsyncClient, origin: str) -> httpx.Response:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,idempotency-key",
    }
    return await api.options("/v1/vms", headers=headers)


async def test_no_page_of_another_origin_may_read_by_default(tmp_path: Path) -> None:
    """Neither a preflight nor an answer says anything of origins."""
    async with stack(tmp_path) as running, running.client(headers=bearer()) as api:
        for origin in (HOME, *HOSTILE):
            found = [
                await preflight(api, origin),
                await api.get("/v1/vms", headers={"Origin": origin}),
                await api.get("/v1/nothing", headers={"Origin": origin}),
            ]
            for response in found:
                assert not [n for n in response.headers if n.startswith("access-control")]


async def test_pages_of_named_origins_may(tmp_path: Path) -> None:
    """These and no others: not by suffix, prefix, port, scheme or a dot that means any letter."""
    async with stack(tmp_path, cors_origins=ALLOWED) as running, running.client() as api:
        for origin in ALLOWED.split(","):
            allowed = await preflight(api, origin)
            assert allowed.status_code == 204
            assert allowed.headers["Access-Control-Allow-Origin"] == origin
            assert "idempotency-key" in allowed.headers["Access-Control-Allow-Headers"].lower()
            assert "Access-Control-Allow-Credentials" not in allowed.headers
            for path, status in (("/v1/vms", 200), ("/v1/nothing", 404)):
                response = await api.get(path, headers={"Origin": origin, **bearer()})
                assert response.status_code == status
                assert response.headers["Access-Control-Allow-Origin"] == origin
                assert "Origin" in response.headers["Vary"]
                exposed = response.headers["Access-Control-Expose-Headers"]
                assert "Retry-After" in exposed
        for origin in HOSTILE:
            refused = await preflight(api, origin)
            assert "Access-Control-Allow-Origin" not in refused.headers
            response = await api.get("/v1/vms", headers={"Origin": origin, **bearer()})
            assert "Access-Control-Allow-Origin" not in response.headers


@pytest.mark.parametrize(
    "origins", ["*", "https://*.example.com", f"{HOME}/", f"{HOME}, {HOME}", "example.com", "null"]
)
def test_origins_are_named_in_full(origins: str) -> None:
    """No wildcard and no path: a setting that would let everybody in is refused at the start."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"cors_origins": origins}, GatewaySettings)


async def test_every_answer_has_the_security_headers(tmp_path: Path) -> None:
    """Good ones, refusals, unknown paths, documents and OPTIONS; none tells the server's name."""
    async with stack(tmp_path) as running, running.client() as api:
        for method, path, headers in (
            ("GET", "/v1/vms", bearer()),
            ("GET", "/v1/vms", {}),
            ("POST", "/v1/vms", bearer()),
            ("PUT", "/v1/vms", bearer()),
            ("OPTIONS", "/v1/vms", bearer()),
            ("GET", "/nothing", {}),
            ("GET", "/openapi.json", {}),
            ("GET", "/docs", {}),
        ):
            response = await api.request(method, path, headers=headers)
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.headers["Referrer-Policy"] == "no-referrer"
            assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
            assert "Server" not in response.headers
            if path != "/docs":
                assert response.headers["Cache-Control"] == "no-store"
                assert response.headers["X-Frame-Options"] == "DENY"


async def test_options_tells_all_methods_of_a_path(tmp_path: Path) -> None:
    """Handlers of one path are registered one by one; the answer knows them all."""
    async with stack(tmp_path) as running, running.client(headers=bearer()) as api:
        for path in ("/v1/vms", "/v1/vms/x"):
            allowed = set((await api.options(path)).headers["Allow"].split(", "))
            assert {"GET", "OPTIONS"} < allowed
            assert ("POST" if path == "/v1/vms" else "DELETE") in allowed


async def test_a_route_that_will_go_says_so() -> None:
    """Deprecation, Sunset and where to read on, on good answers and on errors."""
    going = deprecated(since=date(2026, 1, 1), sunset=date(2026, 9, 1), link="https://example/why")

    @get("/old", opt={**going}, sync_to_thread=False)
    def old() -> dict[str, Any]:
        return {}

    @get("/broken", opt={**going}, sync_to_thread=False)
    def broken() -> dict[str, Any]:
        raise NotFoundException

    @get("/new", sync_to_thread=False)
    def new() -> dict[str, Any]:
        return {}

    app = Observed(Litestar([old, broken, new], openapi_config=None, logging_config=None))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as api:
        for path, status in (("/old", 200), ("/broken", 404)):
            response = await api.get(path)
            assert response.status_code == status
            assert response.headers["Deprecation"] == "@1767225600"
            assert response.headers["Sunset"] == "Tue, 01 Sep 2026 00:00:00 GMT"
            assert response.headers["Link"] == '<https://example/why>; rel="deprecation"'
        assert "Deprecation" not in (await api.get("/new")).headers
    with pytest.raises(ValueError, match="180 days"):
        deprecated(since=date(2026, 1, 1), sunset=date(2026, 2, 1), link="x")
