"""Following a console: where it goes on, what it waits for, and when it ends."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import msgspec
import pytest

from decisec.sdk import AsyncClient, Client, NotFoundError, UnavailableError
from decisec.sdk.console import Following
from decisec.sdk.errors import error_of
from schemas.api import Problem
from schemas.consoles import ConsoleChunk
from schemas.ids import new_id


def problem(status: int, code: str) -> httpx.Response:
    body = Problem(type="t", title="t", status=status, code=code)
    return httpx.Response(status, content=msgspec.json.encode(body))


Word = bytes | tuple[int, str] | httpx.TransportError
"""What is printed, or status and code of a problem, or what happens to the connection."""

GONE = (404, "not_found")
AWAY = (503, "unavailable")


class Printing:
    """An API whose one VM prints these words, one per question; then it is deleted.

    Attributes:
        offsets: What was asked for.
    """

    def __init__(self, *words: Word) -> None:
        self.words = list(words)
        self.offsets: list[int] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """One question."""
        word = self.words.pop(0) if self.words else GONE
        if isinstance(word, tuple):
            return problem(*word)
        if isinstance(word, httpx.TransportError):
            raise word
        offset = int(request.url.params["offset"])
        self.offsets.append(offset)
        chunk = ConsoleChunk(data=word, offset=offset, next_offset=offset + len(word), end=True)
        return httpx.Response(200, content=msgspec.json.encode(chunk))


WORDS: tuple[Word, ...] = (
    b"READY", b"", AWAY, (429, "rate_limited"),
    *(httpx.ConnectError("refused") for _ in range(4)), b"\xffBYE",
)  # fmt: skip


def test_it_goes_on_from_where_it_was_until_the_vm_is_deleted() -> None:
    """Empty looks are not told; a host or an API that is away for a while is waited for."""
    api = Printing(*WORDS)
    with Client("http://x", "t", transport=httpx.MockTransport(api)) as client:
        chunks = list(client.follow_console(new_id(), offset=3, poll_s=0.001))
    assert [chunk.data for chunk in chunks] == [b"READY", b"\xffBYE"]
    assert api.offsets == [3, 8, 8]


async def test_from_asyncio_it_is_the_same() -> None:
    """The same chunks from the same questions."""
    api = Printing(*WORDS)
    async with AsyncClient("http://x", "t", transport=httpx.MockTransport(api)) as client:
        chunks = [chunk async for chunk in client.follow_console(new_id(), offset=3, poll_s=0.001)]
    assert [chunk.data for chunk in chunks] == [b"READY", b"\xffBYE"]
    assert api.offsets == [3, 8, 8]


@pytest.mark.parametrize(
    ("answer", "error"),
    [(GONE, NotFoundError), (AWAY, UnavailableError)],
)
def test_what_does_not_work_from_the_beginning_is_said_at_once(
    answer: Word, error: type[Exception]
) -> None:
    """A VM that was never there is no end."""
    api = Printing(answer)
    with (
        Client("http://x", "t", transport=httpx.MockTransport(api)) as client,
        pytest.raises(error),
    ):
        next(iter(client.follow_console(new_id())))


def chunk(*, end: bool, lost_bytes: int = 0) -> ConsoleChunk:
    return ConsoleChunk(data=b"", offset=9, next_offset=9, end=end, lost_bytes=lost_bytes)


def test_it_hurries_while_there_is_more_and_loses_patience_in_the_end() -> None:
    """The patience is that for one outage, not for all of them together."""
    following = Following(0, 0.5)
    assert following.took(chunk(end=False, lost_bytes=9))
    assert (following.pause_s, following.offset) == (0, 9)
    assert not following.took(chunk(end=True))
    assert following.pause_s == 0.5
    away = error_of(Problem(type="t", title="t", status=503, code="unavailable"), 503, 2.0)
    for now_s in (100.0, 129.0):
        following.failed(away, now_s)
        assert following.pause_s == 2.0
    following.took(chunk(end=True))
    following.failed(away, 140.0)
    with pytest.raises(UnavailableError):
        following.failed(away, 171.0)


@pytest.mark.parametrize(
    "act", [lambda f, e: f.failed(e, 0.0), lambda f, e: (f.took(chunk(end=True)), f.failed(e, 0.0))]
)
def test_an_error_that_does_not_pass_is_raised(act: Callable[[Following, Exception], None]) -> None:
    """Whenever it comes."""
    denied = error_of(Problem(type="t", title="t", status=403, code="forbidden"), 403)
    with pytest.raises(type(denied)):
        act(Following(0), denied)
