"""Whether a child is ready, asked from outside."""

from __future__ import annotations

import asyncio
import json

from decisec.dev.ports import LOOPBACK
from decisec.dev.supervisor import Readiness

_ANSWER_WITHIN_S = 2.0
_REQUEST = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def accepts_connections(port: int) -> Readiness:
    """Ready once a TCP connection can be made."""

    async def ready() -> str:
        try:
            _, writer = await asyncio.open_connection(LOOPBACK, port)
        except OSError as error:
            return _words(port, error)
        writer.close()
        return ""

    return ready


def says_ready(port: int) -> Readiness:
    """Ready once `GET /readyz` says 200; until then the parts it names are the reason.

    Asked twenty times a second while the machine is busy starting everything, so the request
    is written by hand: an HTTP client would load its certificates each time.
    """

    async def ready() -> str:
        try:
            async with asyncio.timeout(_ANSWER_WITHIN_S):
                head, _, body = (await _get(port)).partition(b"\r\n\r\n")
        except (OSError, TimeoutError) as error:
            return _words(port, error)
        if head.split(b" ")[1:2] == [b"200"]:
            return ""
        return _problems(body)

    return ready


async def _get(port: int) -> bytes:
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    try:
        writer.write(_REQUEST)
        return await reader.read()
    finally:
        writer.close()


def _problems(body: bytes) -> str:
    try:
        problems = json.loads(body)["problems"].items()
    except (ValueError, LookupError, AttributeError, TypeError):
        return "not ready"
    return "; ".join(f"{part}: {why}" for part, why in problems) or "not ready"


def _words(port: int, error: BaseException) -> str:
    return f"port {port}: {str(error) or 'no answer'}"
