"""Server-sent events: how a stream is sent, kept alive and ended.

https://html.spec.whatwg.org/multipage/server-sent-events.html. A stream ends for a reason that its
last event names (`end`): the token is no longer good, the gateway stops, the client does not read.
Whatever the client does, a stream holds one chunk and what the socket buffers, and no more.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

import structlog
from litestar import Response
from litestar.response.base import ASGIResponse

from runtime.errors import TransientError
from schemas.codec import encode
from schemas.event_lists import StreamNotice

_log = structlog.get_logger("decisec.streams")

MEDIA_TYPE = "text/event-stream"
HEARTBEAT = b":\n\n"
TRANSPORT = "decisec.transport"
"""Key in an ASGI scope: the connection, as asyncio knows it."""
_UNREAD_BYTES = 131_072
"""What the kernel may hold for a client that does not read; by itself it would take megabytes."""
_LAST_WORD_S = 1.0
"""How long the reason of an end may take to be sent."""
_STUCK_S = 30.0
"""A client that takes nothing for so long is cut off."""

SLOW = StreamNotice(
    code="slow_client",
    message="Too much was waiting to be read; connect once more, and read faster.",
    resume=True,
)
UNAVAILABLE = StreamNotice(
    code="unavailable", message="Something behind this gateway is away; try again.", resume=True
)

Chunks = AsyncGenerator[bytes, None]
Ending = Callable[[], Coroutine[Any, Any, StreamNotice]]


class StreamEndedError(Exception):
    """The stream ends; its reader is told why."""

    def __init__(self, notice: StreamNotice) -> None:
        super().__init__(notice.code)
        self.notice = notice


def event(kind: str, data: bytes, place: str = "") -> bytes:
    """One event; `data` is one line."""
    head = f"id: {place}\nevent: {kind}\ndata: " if place else f"event: {kind}\ndata: "
    return b"%s%s\n\n" % (head.encode(), data)


def place(text: str) -> bytes:
    """No event, but the place to go on from."""
    return f"id: {text}\n\n".encode()


def notice(kind: str, told: StreamNotice) -> bytes:
    """An event about the stream itself."""
    return event(kind, encode(told))


class EventStream(Response[Any]):
    """A response that goes on. Made by `begin`."""

    def __init__(self, first: bytes, chunks: Chunks, endings: tuple[Ending, ...]) -> None:
        super().__init__(b"", media_type=MEDIA_TYPE, headers={"X-Accel-Buffering": "no"})
        self._first = first
        self._chunks = chunks
        self._endings = endings

    def to_asgi_response(self, *_: Any, **__: Any) -> ASGIResponse:
        """What Litestar sends."""
        return _Sent(self._first, self._chunks, self._endings, dict(self.headers))


async def begin(chunks: Chunks, *endings: Ending) -> EventStream:
    """A stream that has come as far as its first chunk: what that raises is an answer of its own.

    Args:
        chunks: What is sent; closed at the end.
        endings: The stream ends as soon as one of these returns, with what it says.
    """
    return EventStream(await anext(chunks), chunks, endings)


class _Sent(ASGIResponse):
    _should_set_content_length = False

    def __init__(
        self, first: bytes, chunks: Chunks, endings: tuple[Ending, ...], headers: dict[str, str]
    ) -> None:
        super().__init__(media_type=MEDIA_TYPE, headers=headers)
        self._first = first
        self._chunks = chunks
        self._endings = endings
        self._transport: asyncio.Transport | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self._transport = scope.get(TRANSPORT)
        if self._transport is not None:
            connection = self._transport.get_extra_info("socket")
            if connection is not None:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNREAD_BYTES)
        await super().__call__(scope, receive, send)

    async def send_body(self, send: Any, receive: Any) -> None:
        async with aclosing(self._chunks):
            told = await self._until_over(send, receive)
        if told is None:
            return
        _log.info("stream.ended", code=told.code)
        try:
            async with asyncio.timeout(_LAST_WORD_S):
                await _body(send, notice("end", told))
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            _log.info("stream.cut", code=told.code)
            if self._transport is not None:
                # Closing it would wait for the client to read.
                self._transport.abort()

    async def _until_over(self, send: Any, receive: Any) -> StreamNotice | None:
        """Send until it is over; None if the client has gone."""
        pumping = asyncio.create_task(self._pump(send), name="stream-pump")
        leaving = asyncio.create_task(_left(receive), name="stream-client")
        endings = {asyncio.create_task(end(), name="stream-end") for end in self._endings}
        tasks = {pumping, leaving, *endings}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if leaving in done:
            return None
        if pumping in done:
            return pumping.result()
        return next(task.result() for task in done)

    async def _pump(self, send: Any) -> StreamNotice:
        try:
            await _in_time(send, self._first)
            async for chunk in self._chunks:
                await _in_time(send, chunk)
        except StreamEndedError as error:
            return error.notice
        except TimeoutError:
            return SLOW
        except TransientError as error:
            _log.warning("stream.interrupted", error=str(error))
            return UNAVAILABLE
        return StreamNotice(code="over", message="There is nothing more to come.", resume=False)


async def _body(send: Any, chunk: bytes) -> None:
    await send({"type": "http.response.body", "body": chunk, "more_body": True})


async def _in_time(send: Any, chunk: bytes) -> None:
    async with asyncio.timeout(_STUCK_S):
        await _body(send, chunk)


async def _left(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def transport_of(send: Any) -> asyncio.Transport | None:
    """The connection that a server's `send` belongs to; None where that cannot be known."""
    found = getattr(getattr(send, "__self__", None), "transport", None)
    return found if isinstance(found, asyncio.Transport) else None
