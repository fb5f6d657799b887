"""Reading what the server sends: any bytes where others choose them, in pieces of any size."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.errors import ProtocolError

from runtime.client import ServiceClient
from runtime.wire import MessageParser, text_of

SUBJECTS = st.binary(min_size=1, max_size=40).filter(lambda s: not set(s) & set(b" \t\r\n"))
MESSAGES = st.lists(
    st.tuples(
        SUBJECTS, st.one_of(st.just(b""), SUBJECTS), st.binary(max_size=60), st.binary(max_size=20)
    ),
    max_size=12,
)


class Ear:
    """What a parser tells."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    async def _process_msg(self, *message: Any) -> None:
        self.heard.append(message)

    async def _process_ping(self) -> None:
        self.heard.append("ping")

    async def _process_info(self, info: dict[str, Any]) -> None:
        self.heard.append(info)

    async def _process_err(self, text: str) -> None:
        self.heard.append(text)


def line(subject: bytes, reply: bytes, payload: bytes, header: bytes) -> bytes:
    """A message as the server writes it."""
    words = [b"HMSG" if header else b"MSG", subject, b"7"]
    words += [reply] if reply else []
    words += [b"%d" % len(header)] if header else []
    words.append(b"%d" % (len(header) + len(payload)))
    return b" ".join(words) + b"\r\n" + header + payload + b"\r\n"


@given(MESSAGES, st.lists(st.integers(1, 50), min_size=1))
def test_messages_arrive_whole_whatever_is_in_them(
    messages: list[tuple[bytes, bytes, bytes, bytes]], sizes: list[int]
) -> None:
    """However they come in pieces, with other operations between them."""
    text = b'INFO {"a":1}\r\n' + b"PING\r\n".join(line(*m) for m in messages) + b"-ERR 'Slow'\r\n"

    async def read() -> list[Any]:
        ear = Ear()
        parser = MessageParser(ear)
        left, turn = text, 0
        while left:
            size = sizes[turn % len(sizes)]
            await parser.parse(left[:size])
            left, turn = left[size:], turn + 1
        return ear.heard

    heard = asyncio.run(read())
    assert heard[0] == {"a": 1}
    assert heard[-1] == "'slow'"
    assert [one for one in heard[1:-1] if one != "ping"] == [
        (7, subject, reply, payload, header or None) for subject, reply, payload, header in messages
    ]


@pytest.mark.parametrize(
    "text",
    [b"MSG a\r\n", b"MSG a x 3\r\n", b"HMSG a 1 9 3\r\n", b"MSG a 1 b c 3\r\n", b"MSG a 1 -1\r\n",
     b"what\r\n", b"x" * 2_000_000],
)  # fmt: skip
async def test_what_is_no_nats_is_an_error(text: bytes) -> None:
    """The connection is made anew then."""
    with pytest.raises(ProtocolError):
        await MessageParser(Ear()).parse(text)


@given(SUBJECTS, st.binary(max_size=80))
def test_any_message_becomes_one_of_ours(subject: bytes, header: bytes) -> None:
    """Subjects become text, headers that are none are left out."""

    async def build() -> Any:
        client = ServiceClient()
        headers = await client._process_headers(b"NATS/1.0" + header)
        return client._build_message(1, subject, b"", b"data", headers)

    message = asyncio.run(build())
    assert message.subject == text_of(subject)
    assert message.data == b"data"
