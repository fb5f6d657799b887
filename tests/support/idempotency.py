"""Requests with an idempotency key, and what is the same about two answers."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

CREATE = b'{"image":"tiny"}'
JSON = {"Content-Type": "application/json"}


def key(text: str, **more: str) -> dict[str, str]:
    return {"Idempotency-Key": text, **more}


def same(one: httpx.Response, other: httpx.Response) -> None:
    """The second is the first again, and says so."""
    assert (other.status_code, other.content) == (one.status_code, one.content)
    assert other.headers.get("Location") == one.headers.get("Location")
    assert other.headers["Content-Type"] == one.headers["Content-Type"]
    assert "Idempotency-Replayed" not in one.headers
    assert other.headers["Idempotency-Replayed"] == "true"


async def settled(api: httpx.AsyncClient, method: str, path: str, **options: Any) -> httpx.Response:
    """The answer once the first request is no longer under way."""
    async with asyncio.timeout(20):
        while True:
            response = await api.request(method, path, **options)
            if response.status_code != 409 or response.json()["code"] != "request_in_progress":
                return response
            assert int(response.headers["Retry-After"]) >= 1
            await asyncio.sleep(0.05)


async def vms(api: httpx.AsyncClient) -> list[str]:
    return [vm["vm_id"] for vm in (await api.get("/v1/vms")).json()["vms"]]
