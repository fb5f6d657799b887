"""HTTP/1.1 over a Unix socket, as much of it as a VMM's API speaks.

One connection per VMM, kept open (Firecracker allows ten), one request at a time, answers with a
Content-Length or none. Anything else is refused: a VMM may be compromised, so what it says is
bounded and checked. At ten flushes a second per VM a general client would cost more than the
VMM itself, and asyncio's streams as much again as this.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from vm_agent.drivers.paths import short_address

MAX_HEAD_BYTES = 16 * 1024
MAX_BODY_BYTES = 1024 * 1024

_CLOSED = "the VMM closed its API connection"


class ProtocolError(Exception):
    """What came back is no HTTP answer of the expected kind."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Status code and body of a response."""

    status: int
    body: bytes


def parse_head(head: bytes) -> tuple[int, int, bool]:
    """Take the head of a response apart, up to and with the empty line.

    Returns:
        Status code, length of the body in bytes, whether the connection stays open.

    Raises:
        ProtocolError: It is no HTTP/1.1 head, or frames its body by other means than a
            Content-Length.
    """
    first, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    words = first.split(b" ", 2)
    if len(words) < 2 or words[0] != b"HTTP/1.1" or len(words[1]) != 3 or not words[1].isdigit():
        raise ProtocolError(f"no HTTP status line: {first[:80]!r}")
    length = 0
    keep = True
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon:
            raise ProtocolError(f"no HTTP header: {line[:80]!r}")
        match name.strip().lower():
            case b"content-length":
                text = value.strip()
                if not text.isdigit() or len(text) > 9:
                    raise ProtocolError(f"bad Content-Length: {text[:80]!r}")
                length = int(text)
            case b"transfer-encoding":
                raise ProtocolError("the answer is chunked")
            case b"connection":
                keep = value.strip().lower() != b"close"
            case _:
                pass
    if length > MAX_BODY_BYTES:
        raise ProtocolError(f"an answer of {length} bytes is too long")
    return int(words[1]), length, keep


def take_answer(received: bytes) -> tuple[Answer, bool] | None:
    """The answer that these bytes are, and whether the connection stays open; None for half a one.

    Raises:
        ProtocolError: They are no answer, or more than one.
    """
    head, end, body = received.partition(b"\r\n\r\n")
    if len(head) > MAX_HEAD_BYTES:
        raise ProtocolError("the answer's head is too long")
    if not end:
        return None
    status, length, keep = parse_head(head + end)
    if len(body) > length:
        raise ProtocolError("the VMM says more than it was asked")
    return (Answer(status, body), keep) if len(body) == length else None


class _Line(asyncio.Protocol):
    """An open connection, on which one request at a time waits for its answer.

    Attributes:
        ended: Done once the connection is closed.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.WriteTransport | None = None
        self._received = b""
        self._waiter: asyncio.Future[tuple[Answer, bool]] | None = None
        self.ended: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.WriteTransport):
            raise TypeError("a connection goes both ways")
        self._transport = transport

    def ask(self, request: bytes) -> asyncio.Future[tuple[Answer, bool]]:
        """Send a request; the answer, and whether the connection stays open."""
        waiter = self._waiter = self._loop.create_future()
        if self._transport is None or self.ended.done():
            waiter.set_exception(ConnectionResetError(_CLOSED))
        else:
            self._received = b""
            self._transport.write(request)
        return waiter

    def data_received(self, data: bytes) -> None:
        if self._waiter is None or self._waiter.done():
            self.abort()  # nobody has asked
            return
        self._received += data
        try:
            answer = take_answer(self._received)
        except ProtocolError as error:
            self._waiter.set_exception(error)
            self.abort()
        else:
            if answer is not None:
                self._waiter.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set_result(None)
        if self._waiter is not None and not self._waiter.done():
            error = ConnectionResetError(_CLOSED)
            error.__cause__ = exc
            self._waiter.set_exception(error)

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()


class UnixHttpConnection:
    """A connection to one API socket; opens itself when needed and again after a failure."""

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path
        self._line: _Line | None = None
        self._turn = asyncio.Lock()

    async def request(self, method: str, path: str, body: bytes = b"") -> Answer:
        """Send a request and wait for the answer; the caller sets the time limit.

        After a failure or a cancellation the connection is closed, so that a late answer is
        never taken for another request's.

        Raises:
            OSError: Nobody listens, or the connection broke.
            ProtocolError: The answer is garbage.
        """
        async with self._turn:
            try:
                line = self._line
                if line is None or line.ended.done():
                    line = await self._open()
                answer, keep = await line.ask(
                    b"%b %b HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n"
                    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                    % (method.encode(), path.encode(), len(body), body)
                )
            except BaseException:
                self._drop()
                raise
            if not keep:
                self._drop()
            return answer

    async def _open(self) -> _Line:
        with short_address(self._path) as address:
            _, self._line = await asyncio.get_running_loop().create_unix_connection(_Line, address)
        return self._line

    def _drop(self) -> None:
        if self._line is not None:
            self._line.abort()
            self._line = None

    async def close(self) -> None:
        """Close the connection; the next request opens a new one."""
        if (line := self._line) is not None:
            self._drop()
            await line.ended
