"""What a hostile connection may cost an HTTP server: bytes, seconds, sockets.

Uvicorn bounds neither the time that a request takes to come in nor the connections of one caller.
Its h11 protocol is used although its other one is faster: it takes one request of a connection at a
time, and nothing that the standard does not allow.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h11
import structlog
from uvicorn.protocols.http.h11_impl import H11Protocol

from runtime.telemetry import meter

_log = structlog.get_logger("decisec.http")

_SPARE_FILES = 128
"""File descriptors that everything else in the process may need."""
_LINGER_S = 1.0
_MAX_DISCARDED = 16_777_216
_END_OF_HEAD = b"\r\n\r\n"

# Uvicorn has a warning for each malformed request: whoever sends them would fill the log.
_quiet = logging.getLogger("decisec.http.uvicorn")
_quiet.setLevel(logging.ERROR)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Bounds of a server.

    Attributes:
        connections: At once; fewer where the process may not open so many files.
        per_address: At once from one address.
        head_s: From the first byte of a request, or from the connection, to the end of its head.
        body_s: From there to the end of its body.
        write_s: For the caller to take what it was sent when buffers are full.
        head_bytes: Request line and headers.
        address_of: The name under which a peer's connections are counted; empty not to count them.
    """

    connections: int = 4096
    per_address: int = 512
    head_s: float = 10.0
    body_s: float = 30.0
    write_s: float = 30.0
    head_bytes: int = 32_768
    address_of: Callable[[str], str] = str


class Connections:
    """The open connections of one server."""

    def __init__(self, limits: ConnectionLimits) -> None:
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.limits = limits
        self.most = max(16, min(limits.connections, files - _SPARE_FILES))
        self.open = 0
        self._per_address: Counter[str] = Counter()
        self._refused = meter().create_counter(
            "decisec_http_connections_refused", description="Connections ended early, by reason"
        )

    def enter(self, address: str) -> bool:
        """Count a connection; False if there are too many."""
        self.open += 1
        if address:
            self._per_address[address] += 1
        if self.open > self.most:
            return self.refuse("too_many")
        if self._per_address[address] > self.limits.per_address:
            return self.refuse("too_many_of_one")
        return True

    def leave(self, address: str) -> None:
        """Count it no more."""
        self.open -= 1
        if address:
            self._per_address[address] -= 1
            if not self._per_address[address]:
                del self._per_address[address]

    def refuse(self, reason: str) -> bool:
        """Count a refusal."""
        self._refused.add(1, {"reason": reason})
        return False


class GuardedProtocol(H11Protocol):
    """Uvicorn's protocol with bounds. Use `guarded` to give it its counters."""

    guard: Connections

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = _quiet
        self._address = ""
        self._refused = False
        self._phase = ""
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._tail = b""
        self._discarded = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, or refuse it with a few bytes."""
        super().connection_made(transport)
        peer = self.client[0] if self.client else ""
        self._address = self.guard.limits.address_of(peer)
        if self.guard.enter(self._address):
            self._enter("head", self.guard.limits.head_s)
        else:
            self._end(503, "Service Unavailable", "Too many connections.", retry=True)

    def connection_lost(self, exc: Exception | None) -> None:
        """Count it no more."""
        self._phase = "lost"
        self._enter("", 0)
        self.resume_writing()
        self.guard.leave(self._address)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes, and see whether the request comes in at a reasonable pace."""
        if self._refused:
            self._discard(len(data))
            return
        if self.conn.their_state is h11.IDLE and self._too_large(data):
            self.guard.refuse("head_too_large")
            self._end(431, "Request Header Fields Too Large", "The head is too large.")
            return
        super().data_received(data)
        self._follow()

    def on_response_complete(self) -> None:
        """Begin anew: what comes is another request."""
        self._head_bytes, self._tail = 0, b""
        self._enter("", 0)
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The caller does not read: wait for it, but not for ever."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.guard.limits.write_s, self._stuck)

    def resume_writing(self) -> None:
        """The caller reads again."""
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        if self.flow is not None:
            super().resume_writing()

    def _too_large(self, data: bytes) -> bool:
        limit = self.guard.limits.head_bytes
        before = self._head_bytes
        self._head_bytes += len(data)
        if self._head_bytes <= limit:
            self._tail = (self._tail + data)[-3:]
            return False
        # Large, but most of it may be a body that came with a small head.
        seen = self._tail + data
        end = seen.find(_END_OF_HEAD, 0, max(0, limit - before) + len(self._tail))
        return end < 0

    def _follow(self) -> None:
        if self._refused or self.transport.is_closing():
            return
        state = self.conn.their_state
        if state is h11.IDLE:
            self._enter("head", self.guard.limits.head_s)
        elif state is h11.SEND_BODY:
            self._enter("body", self.guard.limits.body_s)
        else:
            self._enter("", 0)

    def _enter(self, phase: str, within_s: float) -> None:
        if phase == self._phase:
            return
        self._phase = phase
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if phase:
            self._timer = self.loop.call_later(within_s, self._late)

    def _late(self) -> None:
        self.guard.refuse(f"slow_{self._phase}")
        self._end(408, "Request Timeout", "The request did not come in time.")

    def _stuck(self) -> None:
        self._write_timer = None
        self.guard.refuse("slow_reader")
        self._refused = True
        self.transport.abort()

    def _end(self, status: int, phrase: str, detail: str, *, retry: bool = False) -> None:
        self._refused = True
        self._enter("", 0)
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            lines = (
                f"HTTP/1.1 {status} {phrase}",
                "content-type: text/plain; charset=utf-8",
                f"content-length: {len(detail)}",
                *(("retry-after: 1",) if retry else ()),
                "connection: close",
                "",
                detail,
            )
            self.transport.write("\r\n".join(lines).encode("ascii"))
        if cycle is not None:
            # The app, if it waits for the rest, hears that there is none.
            cycle.disconnected = True
            cycle.message_event.set()
        if retry or not self.transport.can_write_eof():
            self.transport.close()
            return
        # Closed with bytes unread, the connection would be reset, and the answer lost with it.
        self.transport.write_eof()
        self.flow.resume_reading()
        self._timer = self.loop.call_later(_LINGER_S, self.transport.close)

    def _discard(self, count: int) -> None:
        self._discarded += count
        if self._discarded > _MAX_DISCARDED:
            self.transport.abort()


def guarded(limits: ConnectionLimits) -> type[GuardedProtocol]:
    """A protocol class for one server."""

    class Guarded(GuardedProtocol):
        guard = Connections(limits)

    return Guarded
