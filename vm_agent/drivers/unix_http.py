"""HTTP/1.1 over a Unix socket, as much of it as a VMM's API speaks.

One connection per VMM, kept open (Firecracker allows ten), one request at a time, answers with a
Content-Length or none. Anything else is refused: a VMM may be compromised, so what it says is
bounded and checked. At ten flushes a second per VM a general client would cost more than the
VMM itself.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from vm_agent.drivers.paths import short_address

MAX_HEAD_BYTES = 16 * 1024
MAX_BODY_BYTES = 1024 * 1024


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


class UnixHttpConnection:
    """A connection to one API socket; opens itself when needed and again after a failure."""

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
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
                reader, writer = self._streams or await self._open()
                writer.write(
                    b"%b %b HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n"
                    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                    % (method.encode(), path.encode(), len(body), body)
                )
                await writer.drain()
                status, length, keep = parse_head(await reader.readuntil(b"\r\n\r\n"))
                answer = Answer(status, await reader.readexactly(length) if length else b"")
            except asyncio.IncompleteReadError as error:
                self._drop()
                raise ConnectionResetError("the VMM closed its API connection") from error
            except asyncio.LimitOverrunError as error:
                self._drop()
                raise ProtocolError("the answer's head is too long") from error
            except BaseException:
                self._drop()
                raise
            if not keep:
                self._drop()
            return answer

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        with short_address(self._path) as address:
            self._streams = await asyncio.open_unix_connection(address, limit=MAX_HEAD_BYTES)
        return self._streams

    def _drop(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None

    async def close(self) -> None:
        """Close the connection; the next request opens a new one."""
        if self._streams is not None:
            _, writer = self._streams
            self._drop()
            try:
                await writer.wait_closed()
            except OSError:
                return  # it was broken already
