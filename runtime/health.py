"""`GET /healthz`, `/readyz` and `/metrics` of a service, on a port of its own."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import structlog
import uvicorn

from runtime.errors import FatalError
from runtime.http_guard import ConnectionLimits, guarded
from runtime.telemetry import prometheus_text

_log = structlog.get_logger("decisec.health")

_DEFAULT_LIMITS = ConnectionLimits()

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Health:
    """What the parts of a service say of themselves; ready means that every part is."""

    def __init__(self) -> None:
        self._parts: dict[str, str] = {}

    def ready(self, part: str) -> None:
        """Note that a part works."""
        self._parts[part] = ""

    def unready(self, part: str, why: str) -> None:
        """Note that a part does not work (yet, or any more), with a sentence for people."""
        self._parts[part] = why or "not ready"

    @property
    def problems(self) -> dict[str, str]:
        """The parts that are not ready, and why."""
        return {part: why for part, why in self._parts.items() if why}


class QuietServer(uvicorn.Server):
    """A uvicorn server that leaves signals to the service around it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing: the service's own handlers stay."""
        yield


def listen(host: str, port: int) -> socket.socket:
    """A bound TCP socket; port 0 takes a free one.

    Raises:
        FatalError: The address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where it sees the protocol named; with it, each
    # answer of two writes waits 40 ms for a delayed ack.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise FatalError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    return sock


@asynccontextmanager
async def serve_asgi(
    app: Any,
    sock: socket.socket,
    grace_s: float = 5.0,
    limits: ConnectionLimits = _DEFAULT_LIMITS,
) -> AsyncIterator[None]:
    """Serve an ASGI app on a bound socket for the length of the block, then shut down in order."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="auto",
        http=guarded(limits),
        h11_max_incomplete_event_size=limits.head_bytes,
        ws="none",
        server_header=False,
        # Or whoever connects from this machine is believed to be whom it says.
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, int(grace_s)),
    )
    server = QuietServer(config)
    with sock:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(server.serve(sockets=[sock]), name="http-server")
            try:
                while not server.started:
                    if task.done():
                        raise FatalError("the HTTP server ended while it started; see its log")
                    await asyncio.sleep(0.005)
                yield
            finally:
                server.should_exit = True


def _probe_app(health: Health) -> Callable[..., Awaitable[None]]:
    async def app(scope: Scope, receive: Any, send: Send) -> None:
        if scope["type"] != "http":
            return
        status, kind, body = 200, b"application/json", b'{"status":"ok"}'
        match scope["path"]:
            case "/healthz":
                pass
            case "/readyz":
                if problems := health.problems:
                    status = 503
                    body = json.dumps({"status": "not ready", "problems": problems}).encode()
            case "/metrics":
                kind, body = b"text/plain; version=0.0.4; charset=utf-8", prometheus_text()
            case _:
                status, body = 404, b'{"status":"not found"}'
        headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


@asynccontextmanager
async def serve_probes(health: Health, host: str, port: int) -> AsyncIterator[int]:
    """Serve the three probe paths for the length of the block; yields the port."""
    sock = listen(host, port)
    bound = int(sock.getsockname()[1])
    async with serve_asgi(_probe_app(health), sock, grace_s=1.0):
        _log.info("probes.opened", host=host, port=bound)
        yield bound
