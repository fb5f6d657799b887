"""A connection that writes to nats-server what no client library would, and much of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

_CHUNK = 1 << 18


class RawBus:
    """Sends any bytes as subject, header and body.

    Args:
        hear: Called with subject and body of each message that comes to `_INBOX.raw.>`, and of
            what else is subscribed to.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        hear: Callable[[bytes, bytes], None],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._hear = hear
        self._pongs: asyncio.Queue[None] = asyncio.Queue()

    def send(self, subject: bytes, data: bytes, *, reply: bytes = b"", header: bytes = b"") -> None:
        """Send a message; `header` without `NATS/1.0`."""
        where = subject + b" " + reply if reply else subject
        if header:
            header = b"NATS/1.0" + header
            sizes = b"%d %d" % (len(header), len(header) + len(data))
            self._writer.write(b"HPUB %b %b\r\n%b%b\r\n" % (where, sizes, header, data))
        else:
            self._writer.write(b"PUB %b %d\r\n%b\r\n" % (where, len(data), data))

    def subscribe(self, subject: bytes) -> None:
        """Hear of these messages as well."""
        self._writer.write(b"SUB %b 2\r\n" % subject)

    async def flush(self) -> None:
        """Return once the server has taken all that was sent."""
        self._writer.write(b"PING\r\n")
        await self._writer.drain()
        await self._pongs.get()

    async def read(self) -> None:
        """Take what the server sends, until cancelled.

        Raises:
            ConnectionError: The server says no, or goes.
        """
        left = b""
        while chunk := await self._reader.read(_CHUNK):
            left += chunk
            while (end := left.find(b"\r\n")) >= 0:
                words = left[:end].split()
                if words and words[0] in (b"MSG", b"HMSG"):
                    size = int(words[-1])
                    if len(left) < end + size + 4:
                        break
                    skip = int(words[-2]) if words[0] == b"HMSG" else 0
                    self._hear(words[1], left[end + 2 + skip : end + 2 + size])
                    left = left[end + size + 4 :]
                    continue
                self._note(left[:end])
                left = left[end + 2 :]
        raise ConnectionError("the server has closed the connection")

    def _note(self, line: bytes) -> None:
        if line == b"PONG":
            self._pongs.put_nowait(None)
        elif line == b"PING":
            self._writer.write(b"PONG\r\n")
        elif line.startswith(b"-ERR"):
            raise ConnectionError(line.decode(errors="replace"))

    async def close(self) -> None:
        """End the connection."""
        self._writer.close()
        await self._writer.wait_closed()


def _deaf(subject: bytes, data: bytes) -> None:
    del subject, data


@asynccontextmanager
async def raw_bus(port: int, hear: Callable[[bytes, bytes], None] = _deaf) -> AsyncIterator[RawBus]:
    """A connection for the length of the block."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await reader.readline()
    writer.write(b'CONNECT {"verbose":false,"pedantic":false,"headers":true}\r\n')
    writer.write(b"SUB _INBOX.raw.> 1\r\n")
    bus = RawBus(reader, writer, hear)
    reading = asyncio.create_task(bus.read(), name="raw-bus")
    try:
        await bus.flush()
        yield bus
    finally:
        reading.cancel()
        await asyncio.wait({reading})
        await bus.close()
