"""The API client believes nothing that a VMM says without checking it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vm_agent.drivers.unix_http import (
    MAX_BODY_BYTES,
    Answer,
    ProtocolError,
    UnixHttpConnection,
    parse_head,
    take_answer,
)

VENDOR_HEAD = (
    b"HTTP/1.1 400 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n"
    b"Content-Type: application/json\r\nContent-Length: 64\r\n\r\n"
)


@asynccontextmanager
async def answering(answer: Callable[[int], bytes]) -> AsyncIterator[Path]:
    """A server that says `answer(n)` to its n-th request, whatever that is, and then hangs up."""
    count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        with suppress(asyncio.IncompleteReadError, OSError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer(count))
            count += 1
            await writer.drain()
        writer.close()

    with tempfile.TemporaryDirectory(prefix="dsu-") as directory:
        # Longer than a Unix address may be: the client must cope.
        path = Path(directory) / ("d" * 120) / "s"
        path.parent.mkdir()
        short = Path(directory) / "s"
        server = await asyncio.start_unix_server(serve, short)
        short.rename(path)
        try:
            yield path
        finally:
            server.close()
            await server.wait_closed()


def test_the_vendors_answers_are_understood() -> None:
    """An empty reason phrase, a length or none."""
    assert parse_head(VENDOR_HEAD) == (400, 64, True)
    assert parse_head(b"HTTP/1.1 204 \r\nConnection: close\r\n\r\n") == (204, 0, False)


@given(st.binary(max_size=200))
def test_any_head_is_understood_or_refused(head: bytes) -> None:
    """Garbage raises ProtocolError and nothing else; what passes is bounded."""
    try:
        status, length, _ = parse_head(head + b"\r\n\r\n")
    except ProtocolError:
        return
    assert 0 <= status <= 999
    assert 0 <= length <= MAX_BODY_BYTES


@given(st.sampled_from([b"-1", b"+1", b"1_0", b"0x10", b"", b"9" * 10, b"2000000", b"1, 1"]))
def test_a_strange_length_is_refused(value: bytes) -> None:
    """Python's int() would take some of these."""
    with pytest.raises(ProtocolError):
        parse_head(b"HTTP/1.1 200 OK\r\nContent-Length: %b\r\n\r\n" % value)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 \r\nnonsense\r\n\r\n",
        b"x" * 100_000,
        b"HTTP/1.1 204 \r\n\r\nHTTP/1.1 204 \r\n\r\n",
    ],
)
async def test_garbage_is_a_protocol_error(answer: bytes) -> None:
    """And the client can be used again."""
    async with answering(lambda n: answer if n == 0 else b"HTTP/1.1 204 \r\n\r\n") as path:
        client = UnixHttpConnection(path)
        async with asyncio.timeout(5):
            with pytest.raises(ProtocolError):
                await client.request("GET", "/")
            assert (await client.request("GET", "/")).status == 204
        await client.close()


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 2", b"HTTP/1.1 200 \r\nContent-Length: 9\r\n\r\nx"]
)
async def test_an_answer_that_breaks_off_is_an_os_error(answer: bytes) -> None:
    """Half an answer is none."""
    async with answering(lambda _: answer) as path:
        client = UnixHttpConnection(path)
        async with asyncio.timeout(5):
            with pytest.raises(OSError, match="closed"):
                await client.request("GET", "/")
        await client.close()


async def test_a_cancelled_request_does_not_answer_the_next_one() -> None:
    """The connection is dropped, so a late answer finds nobody."""
    asked: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.append(writer)
        if len(asked) == 2:
            for peer, body in zip(asked, (b"old", b"new"), strict=True):
                peer.write(b"HTTP/1.1 200 \r\nContent-Length: 3\r\n\r\n" + body)
                peer.close()

    with tempfile.TemporaryDirectory(prefix="dsu-") as directory:
        path = Path(directory) / "s"
        server = await asyncio.start_unix_server(serve, path)
        client = UnixHttpConnection(path)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.request("GET", "/first")
        async with asyncio.timeout(5):
            assert (await client.request("GET", "/second")).body == b"new"
        await client.close()
        server.close()
        await server.wait_closed()


async def test_nobody_listening_is_an_os_error() -> None:
    """No socket, no directory."""
    client = UnixHttpConnection(Path("/nonexistent/api.sock"))
    with pytest.raises(OSError, match="No such file"):
        await client.request("GET", "/")
    await client.close()


@given(st.binary(max_size=40), st.data())
def test_an_answer_is_taken_once_it_is_whole(body: bytes, data: st.DataObject) -> None:
    """Not before, however it is cut, and nothing may follow it."""
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    assert take_answer(whole) == (Answer(200, body), True)
    assert take_answer(whole[: data.draw(st.integers(0, len(whole) - 1))]) is None
    with pytest.raises(ProtocolError):
        take_answer(whole + b"x")


async def test_what_comes_unasked_closes_the_connection() -> None:
    """It is never taken for the answer to the next request, which goes by a new one."""
    peers: list[asyncio.StreamWriter] = []
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 %d \r\n\r\n" % (200 + len(peers)))
        with suppress(OSError):
            await reader.read()
        gone.set()
        writer.close()

    with tempfile.TemporaryDirectory(prefix="dsu-") as directory:
        path = Path(directory) / "s"
        server = await asyncio.start_unix_server(serve, path)
        client = UnixHttpConnection(path)
        async with asyncio.timeout(5):
            assert (await client.request("GET", "/")).status == 201
            peers[0].write(b"HTTP/1.1 500 \r\n\r\n")
            await gone.wait()
            assert (await client.request("GET", "/")).status == 202
        await client.close()
        server.close()
        await server.wait_closed()
