"""Raw bytes at a gateway's own process: slow, huge, deep, packed, many; each refused cheaply."""

from __future__ import annotations

import asyncio
import gzip
import json
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from decisec.devkit.tokens import mint
from runtime.health import listen, serve_asgi
from runtime.http_guard import ConnectionLimits
from tests.support.gateway import TINY, until
from tests.support.gateway_process import GatewayProcess
from tests.support.nats import NatsServer, bus_with_streams
from tests.support.tokens import KEY, bearer

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONNECTIONS = 40


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GatewayProcess]:
    """One process for all tests here; it is short of patience."""
    folder = tmp_path_factory.mktemp("hostile")
    async with (
        bus_with_streams(folder) as (server, _),
        GatewayProcess(
            server,
            folder,
            head_timeout_s=1,
            body_timeout_s=1,
            max_connections_per_address=CONNECTIONS,
            address_per_s=0,
        ) as process,
    ):
        await process.serving()
        yield process


def head(method: str = "GET", target: str = "/v1/whoami", *more: str) -> bytes:
    """A request up to its body, with a good token."""
    lines = (
        f"{method} {target} HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {mint(KEY, 'hostile')}",
        *more,
    )
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def status_of(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer[:100]
    return int(answer.split(b" ", 2)[1])


async def still_serves(gateway: GatewayProcess) -> None:
    """Whoever behaves is answered."""
    async with httpx.AsyncClient(headers=bearer("good"), timeout=10) as api:
        assert (await api.get(f"{gateway.url}/v1/vms")).status_code == 200


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [b"GET"],
        [b"GET /v1/vms HTTP/1.1\r\nHost: x\r\nX-Slow: "],
        [head("POST", "/v1/vms", "Content-Type: application/json", "Content-Length: 100"), b"{"],
        [
            head("POST", "/v1/vms", "Content-Type: application/json", "Transfer-Encoding: chunked"),
            b"1\r\n{\r\n",
        ],
    ],
    ids=["silent", "a word", "a header", "a body", "chunks"],
)
async def test_a_slow_request_is_ended(gateway: GatewayProcess, parts: list[bytes]) -> None:
    """408 and the end of the connection, for head and body; many of them hinder nobody."""
    talks = [asyncio.create_task(gateway.talk(*parts)) for _ in range(20)]
    await still_serves(gateway)
    for answer in await asyncio.gather(*talks):
        assert status_of(answer) == 408
        assert b"connection: close" in answer


async def test_a_request_that_drips_is_ended_all_the_same(gateway: GatewayProcess) -> None:
    """What counts is when it began, not when it last said something."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    read = asyncio.create_task(reader.read())
    writer.write(b"GET / HTTP/1.1\r\n")
    async with asyncio.timeout(15):
        while not read.done():
            writer.write(b"X: y\r\n")
            await asyncio.sleep(0.1)
    writer.close()
    assert status_of(await read) == 408


@pytest.mark.parametrize("size", [40_000, 5_000_000])
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_huge_head_is_refused(gateway: GatewayProcess, size: int, at_once: bool) -> None:
    """431 as soon as it is too large, whether it comes whole or in pieces."""
    huge = b"GET / HTTP/1.1\r\nX-Huge: " + b"a" * size + b"\r\n\r\n"
    parts = [huge] if at_once else [huge[n : n + 4000] for n in range(0, len(huge), 4000)]
    assert status_of(await gateway.talk(*parts)) == 431
    await still_serves(gateway)


async def test_many_small_headers_are_refused(gateway: GatewayProcess) -> None:
    """By their number too; and a long request line like a long header."""
    many = head("GET", "/v1/whoami", *(f"X-{number}: y" for number in range(200)))
    assert status_of(await gateway.talk(many)) == 431
    assert status_of(await gateway.talk(b"GET /" + b"a" * 50_000 + b" HTTP/1.1\r\n\r\n")) == 431


async def test_a_body_with_its_head_may_be_larger_than_a_head(gateway: GatewayProcess) -> None:
    """The limit is the head's own."""
    body = json.dumps({**TINY, "labels": {f"l{n}": "v" * 60 for n in range(600)}}).encode()
    assert len(body) > 40_000
    lines = ("Content-Type: application/json", f"Content-Length: {len(body)}", "Connection: close")
    for parts in (
        [head("POST", "/v1/vms", *lines) + body],
        [head("POST", "/v1/vms", *lines)[:-3], b"\n\r\n" + body],
    ):
        assert status_of(await gateway.talk(*parts)) == 400


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity, gzip", "x"])
async def test_a_packed_body_is_not_unpacked(gateway: GatewayProcess, encoding: str) -> None:
    """415, whatever is in it; nothing is read of it."""
    bomb = gzip.compress(b" " * 10_000_000)
    lines = (
        "Content-Type: application/json",
        f"Content-Encoding: {encoding}",
        f"Content-Length: {len(bomb)}",
    )
    answer = await gateway.talk(head("POST", "/v1/vms", *lines) + bomb)
    assert status_of(answer) == 415
    assert b'"code":"unsupported"' in answer


@pytest.mark.parametrize(
    "body", [b"[" * 60_000, b'{"a":' * 12_000, b'{"labels":' + b"[" * 50_000], ids=["l", "m", "f"]
)
async def test_a_deep_body_is_refused(gateway: GatewayProcess, body: bytes) -> None:
    """400, and the process lives."""
    lines = ("Content-Type: application/json", f"Content-Length: {len(body)}", "Connection: close")
    assert status_of(await gateway.talk(head("POST", "/v1/vms", *lines) + body)) == 400
    await still_serves(gateway)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GARBAGE\r\n\r\n",
        head("POST", "/v1/vms", "Content-Length: 5", "Content-Length: 6") + b"{}",
        head("POST", "/v1/vms", "Content-Length: -1"),
        head("POST", "/v1/vms", "Transfer-Encoding: chunked, identity") + b"0\r\n\r\n",
        head("POST", "/v1/vms", "Transfer-Encoding: chunked") + b"zz\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nBad Header: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nNul: \0\r\n\r\n",
    ],
    ids=["tls", "garbage", "lengths", "negative", "te", "chunk", "name", "nul"],
)
async def test_what_is_no_request_is_refused(gateway: GatewayProcess, request_bytes: bytes) -> None:
    """400 and the end of the connection; nothing in the log for each of them."""
    before = gateway.log_path.stat().st_size
    assert status_of(await gateway.talk(request_bytes)) in (400, 501)
    await still_serves(gateway)
    assert b"Invalid HTTP request" not in gateway.log_path.read_bytes()[before:]


async def test_pipelined_requests_are_answered_one_at_a_time(gateway: GatewayProcess) -> None:
    """Hundreds in one piece: all in their order, none beside another."""
    count = 300
    last = head("GET", "/v1/whoami", "Connection: close")
    answer = await gateway.talk(head() * (count - 1) + last, within_s=60)
    found = Counter(
        int(part.split(b" ", 1)[0]) for part in answer.split(b"HTTP/1.1 ") if part.strip()
    )
    assert found == {200: count}


async def test_one_address_gets_so_many_connections(gateway: GatewayProcess) -> None:
    """One more is told to come later, and may once another is closed."""
    async with AsyncExitStack() as exits:
        sockets: list[socket.socket] = []

        async def is_full() -> bool:
            # Connections of earlier tests may still be counted for a moment.
            open_one = socket.create_connection(("127.0.0.1", gateway.port))
            exits.callback(open_one.close)
            sockets.append(open_one)
            answer = await gateway.talk(head("GET", "/v1/whoami", "Connection: close"))
            return status_of(answer) == 503 and b"retry-after: 1" in answer

        await until(is_full, timeout_s=10)
        assert len(sockets) <= CONNECTIONS
    await until(lambda: serves(gateway))
    assert await gateway.metric("decisec_http_connections_refused", "too_many_of_one") >= 1


async def serves(gateway: GatewayProcess) -> bool:
    answer = await gateway.talk(head("GET", "/v1/whoami", "Connection: close"))
    return status_of(answer) == 200


async def test_a_caller_that_does_not_read_is_left() -> None:
    """A response that nobody takes holds its connection for a while only."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1000):
            await send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})

    sock = listen("127.0.0.1", 0)
    port = sock.getsockname()[1]
    async with serve_asgi(app, sock, limits=ConnectionLimits(write_s=0.3)):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.sleep(1.0)
        total = 0
        async with asyncio.timeout(10):
            try:
                while chunk := await reader.read(1_000_000):
                    total += len(chunk)
            except ConnectionResetError:
                pass
        writer.close()
        assert total < 65_536_000


async def test_a_slow_bus_is_no_reason_to_pile_up(tmp_path: Path) -> None:
    """The server hangs: fast 503 beyond the places, reads go on, and all is well afterwards."""
    async with (
        bus_with_streams(tmp_path) as (server, _),
        GatewayProcess(
            server, tmp_path, max_in_flight=8, max_expensive=4, queue_deadline_s=0.2
        ) as gateway,
    ):
        await gateway.serving()
        async with httpx.AsyncClient(
            base_url=gateway.url, timeout=60, limits=httpx.Limits(max_connections=400)
        ) as api:
            await hung(server, api, gateway)
            await until(lambda: refuses_for_room(api))


async def hung(server: NatsServer, api: httpx.AsyncClient, gateway: GatewayProcess) -> None:
    """What customers meet while nats-server does nothing."""
    server.send(signal.SIGSTOP)
    try:
        posts = [
            asyncio.create_task(
                api.delete(f"/v1/vms/0199d3a0-0000-7000-8000-{n:012x}", headers=bearer(f"c{n % 8}"))
            )
            for n in range(200)
        ]
        usage = [
            asyncio.create_task(api.get("/v1/usage", headers=bearer(f"c{n % 8}")))
            for n in range(50)
        ]
        read = [(await api.get("/v1/vms", headers=bearer("reader"))).status_code for _ in range(20)]
        assert set(read) == {200}
        answers = await asyncio.gather(*posts, *usage)
    finally:
        server.send(signal.SIGCONT)
    assert {answer.status_code for answer in answers} <= {429, 503}
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in answers)
    assert await gateway.metric("decisec_requests_shed_total", "mutations") >= 150
    assert await gateway.metric("decisec_requests_shed_total", "expensive") >= 30


async def refuses_for_room(api: httpx.AsyncClient) -> bool:
    """Whether a create gets as far as it can where there is no host."""
    answer = await api.post("/v1/vms", json=TINY, headers=bearer("after"))
    return bool(answer.json()["code"] == "no_capacity")
