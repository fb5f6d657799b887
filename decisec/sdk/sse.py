"""Server-sent events out of bytes as they come. No I/O.

https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

from __future__ import annotations

from typing import NamedTuple

MAX_LINE_BYTES = 4 * 1024 * 1024
"""A server that sends longer ones is none of ours."""


class SseEvent(NamedTuple):
    """One event: its type, its data, and the place behind it (empty if none was ever told)."""

    kind: str
    data: bytes
    place: str


class SseParser:
    """Bytes in, events out.

    Attributes:
        place: Behind the last event, or the last id that came without one. That of an event which
            is not yet whole does not count.
    """

    def __init__(self, place: str = "") -> None:
        self.place = place
        self._told = place
        self._rest = bytearray()
        self._kind = ""
        self._data: list[bytes] = []

    def feed(self, data: bytes) -> list[SseEvent]:
        """The events that these bytes complete.

        Raises:
            ValueError: A line is longer than any of ours.
        """
        self._rest += data
        *lines, rest = self._rest.split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            raise ValueError("a line of the stream of events does not end")
        self._rest = bytearray(rest)
        events = []
        for line in lines:
            found = self._line(bytes(line).removesuffix(b"\r"))
            if found is not None:
                events.append(found)
        return events

    def _line(self, line: bytes) -> SseEvent | None:
        if not line:
            self.place = self._told
            kind, data = self._kind or "message", self._data
            self._kind, self._data = "", []
            return SseEvent(kind, b"\n".join(data), self.place) if data else None
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        match name:
            case b"event":
                self._kind = value.decode("utf-8", "replace")
            case b"data":
                self._data.append(value)
            case b"id" if b"\0" not in value:
                self._told = value.decode("utf-8", "replace")
        return None
