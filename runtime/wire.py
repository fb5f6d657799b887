"""What the server sends, read so that no message of somebody else's making can end the connection.

nats-py takes a subject for text without white space and a header for lines in UTF-8. The server
takes any bytes but space, tab and line ends in a subject, and passes headers on as they are: one
message with others would end the library's reading for good, and out of a stream it would come
again after each reconnect.
"""

from __future__ import annotations

from nats.errors import ProtocolError
from nats.protocol.parser import Parser

_LINE_END = b"\r\n"
_KINDS = {b"MSG": 3, b"HMSG": 4}
"""Operations that carry a message, and how many words they have without a reply subject."""

_MAX_LINE_BYTES = 1024 * 1024
"""More than the largest line that the server sends: INFO in a large cluster."""


class MessageParser(Parser):
    """Reads messages itself, and leaves all other operations to the library's parser."""

    def reset(self) -> None:
        """Forget what was read of a connection that is gone."""
        super().reset()
        self._bytes = bytearray()
        self._head: tuple[int, bytes, bytes, int, int] | None = None

    async def parse(self, data: bytes = b"") -> None:
        """Take what has come, and hand on what is complete.

        Raises:
            ProtocolError: This is no NATS.
        """
        self._bytes.extend(data)
        while self._bytes:
            if self._head is None and not await self._line():
                return
            if self._head is not None and not await self._message(*self._head):
                return

    async def _line(self) -> bool:
        """Take one line, if it is there."""
        end = self._bytes.find(_LINE_END)
        if end < 0:
            if len(self._bytes) > _MAX_LINE_BYTES:
                raise ProtocolError("nats: a line without end")
            return False
        line = bytes(self._bytes[:end])
        del self._bytes[: end + len(_LINE_END)]
        words = line.replace(b"\t", b" ").split(b" ")
        if words[0] in _KINDS:
            self._head = _head([word for word in words if word])
        elif line:
            await super().parse(line + _LINE_END)
        return True

    async def _message(
        self, sid: int, subject: bytes, reply: bytes, header_size: int, size: int
    ) -> bool:
        """Hand on the message that the line before has announced, if it is there."""
        content = self._bytes
        if len(content) < size + len(_LINE_END):
            return False
        header = bytes(content[:header_size]) if header_size else None
        payload = bytes(content[header_size:size])
        del content[: size + len(_LINE_END)]
        self._head = None
        # As the library's parser does.
        await self.nc._process_msg(sid, subject, reply, payload, header)  # noqa: SLF001
        return True


def _head(words: list[bytes]) -> tuple[int, bytes, bytes, int, int]:
    """`MSG <subject> <sid> [reply] <size>`, `HMSG <subject> <sid> [reply] <header size> <size>`."""
    without = _KINDS[words[0]] + 1
    if len(words) not in (without, without + 1):
        raise ProtocolError("nats: malformed MSG")
    if not all(number.isdigit() for number in (words[2], *words[3 - without :])):
        raise ProtocolError("nats: malformed MSG")
    reply = words[3] if len(words) == without + 1 else b""
    header_size = int(words[-2]) if words[0] == b"HMSG" else 0
    size = int(words[-1])
    if header_size > size:
        raise ProtocolError("nats: malformed MSG")
    return int(words[2]), words[1], reply, header_size, size


def text_of(subject: bytes) -> str:
    """A subject as text; bytes that are none stand as U+FFFD, which is in no subject of ours."""
    return subject.decode("utf-8", "replace")
