"""Clients that cost little, and the framework's bare handler as what a gateway is measured by."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from litestar import Litestar, Response, get

from runtime.health import listen, serve_asgi
from runtime.telemetry import configure_logging
from tests.support.service_process import ServiceProcess


def percentiles(values: list[float]) -> dict[str, float]:
    """`p50` and `p99`, rounded."""
    ordered = sorted(values)
    return {
        f"p{part}": round(ordered[min(len(ordered) - 1, len(ordered) * part // 100)], 3)
        for part in (50, 99)
    }


class Caller:
    """A client that costs little: one connection, one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, port: int) -> Caller:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self, request: bytes, expected: int) -> bytes:
        """Send a request; returns the body."""
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        status = int(head[9:12])
        at = head.lower().index(b"content-length: ") + 16
        body = await self._reader.readexactly(int(head[at : head.index(b"\r", at)]))
        if status != expected:
            raise RuntimeError(f"{status}: {body[:300]!r}")
        return body

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


def request(method: str, path: str, token: str) -> bytes:
    """The bytes of a request without a body."""
    return (
        f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
        "Content-Length: 0\r\n\r\n"
    ).encode()


async def rate(
    port: int, requests: list[bytes], expected: int, seconds: float, at_once: int
) -> float:
    """Requests a second, with so many open all the time."""
    callers = [await Caller.connect(port) for _ in range(at_once)]
    count = 0
    number = 0
    end = time.perf_counter() + seconds

    async def one(caller: Caller) -> None:
        nonlocal count, number
        while time.perf_counter() < end:
            number += 1
            await caller.ask(requests[number % len(requests)], expected)
            count += 1

    began = time.perf_counter()
    await asyncio.gather(*(one(caller) for caller in callers))
    took_s = time.perf_counter() - began
    for caller in callers:
        await caller.close()
    return count / took_s


class Bare(ServiceProcess):
    """The framework's bare handler as a process."""

    def __init__(self, folder: Path) -> None:
        self._ready = folder / "bare.port"
        super().__init__(
            sys.executable, "-m", "tests.load.gateway_callers", str(self._ready),
            log_path=folder / "bare.log",
        )  # fmt: skip

    async def port(self) -> int:
        async with asyncio.timeout(20):
            while not (text := await asyncio.to_thread(_read, self._ready)):
                await asyncio.sleep(0.05)
        return int(text)


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


async def serve_bare(ready: Path) -> None:
    """Serve until killed."""

    @get("/bare")
    async def bare() -> Response[bytes]:
        return Response(b'{"status":"ok"}', media_type="application/json")

    sock = listen("127.0.0.1", 0)
    app = Litestar([bare], logging_config=None, openapi_config=None)
    async with serve_asgi(app, sock):
        await asyncio.to_thread(ready.write_text, str(sock.getsockname()[1]))
        await asyncio.Event().wait()


if __name__ == "__main__":
    configure_logging("bench", "error")
    asyncio.run(serve_bare(Path(sys.argv[1])))
