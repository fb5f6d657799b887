"""How the SDK reads a stream along, whatever pieces it comes in."""

from __future__ import annotations

from itertools import pairwise

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decisec.sdk import (
    ApiError,
    EventsLostError,
    ForbiddenError,
    NotFoundError,
    UnauthenticatedError,
    UnavailableError,
)
from decisec.sdk.feeds import Feed, events_feed, followed, usage_page
from decisec.sdk.sse import SseEvent, SseParser
from schemas.usage_windows import GroupBy, WindowUnit

STREAM = (
    b"retry: 1000\n\nid: a\n\n:\n\nid: b\nevent: one\ndata: 1\n\n"
    b"event: two\r\ndata: 2\r\ndata:3\r\n\r\n"
    b": words\nid: c\nevent: three\ndata: 4\n\nid: d\ndata: 5"
)
EVENTS = [SseEvent("one", b"1", "b"), SseEvent("two", b"2\n3", "b"), SseEvent("three", b"4", "c")]


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_events_are_the_same_however_their_bytes_come(cuts: list[int]) -> None:
    """And the place is that behind the last whole event, not that of a begun one."""
    parser, found = SseParser("z"), []
    places = [0, *sorted(cuts), len(STREAM)]
    for begin, end in pairwise(places):
        found += parser.feed(STREAM[begin:end])
    assert found == EVENTS
    assert parser.place == "c"


def test_a_line_that_does_not_end_is_not_kept_for_ever() -> None:
    """Whatever answers there, it is not this API."""
    parser = SseParser()
    for _ in range(64):
        parser.feed(b"x" * 65_536)
    with pytest.raises(ValueError, match="does not end"):
        parser.feed(b"x")


def ok() -> httpx.Response:
    return httpx.Response(200, request=httpx.Request("GET", "http://x"))


def refused(status: int, code: str, **headers: str) -> httpx.Response:
    body = {"type": "x", "title": "x", "status": status, "code": code}
    request = httpx.Request("GET", "http://x")
    return httpx.Response(status, json=body, headers=headers, request=request)


def end(code: str, *, resume: bool) -> bytes:
    words = "true" if resume else "false"
    return f'event: end\ndata: {{"code":"{code}","message":"m","resume":{words}}}\n\n'.encode()


def feed(**options: object) -> Feed:
    return events_feed("", (), (), 10.0, allow_lost=bool(options.get("allow_lost")))


def test_a_stream_that_ends_in_order_is_opened_at_once_from_its_place() -> None:
    """A gateway that stops costs no time."""
    one = feed()
    assert "Last-Event-ID" not in one.headers
    one.opened(ok())
    assert one.take(b"id: p\nevent: vm_paused\ndata: {}\n\nid: q\nevent: x\nda") == [
        SseEvent("vm_paused", b"{}", "p")
    ]
    assert one.take(b"") == []
    one.failed(None, 1.0)
    one.opened(ok())
    assert one.take(end("stopping", resume=True)) == []
    one.failed(None, 2.0)
    assert one.pause_s == 0
    assert one.headers["Last-Event-ID"] == "p"
    # One that does nothing but end is not asked without a pause.
    for now_s in (3.0, 4.0):
        one.opened(ok())
        one.failed(httpx.ReadError("gone"), now_s)
    assert one.pause_s > 0


def test_what_will_not_pass_is_raised() -> None:
    """A token that is no longer good, VMs that are gone, refusals; and what lasts too long."""
    for code, kind in (("unauthenticated", UnauthenticatedError), ("not_found", NotFoundError)):
        one = feed()
        one.opened(ok())
        with pytest.raises(kind) as caught:
            one.take(end(code, resume=False))
        with pytest.raises(kind):
            one.failed(caught.value, 1.0)
    one = feed()
    with pytest.raises(ForbiddenError) as denied:
        one.opened(refused(403, "forbidden"))
    with pytest.raises(ForbiddenError):
        one.failed(denied.value, 1.0)
    one = feed()
    with pytest.raises(httpx.ConnectError):
        one.failed(httpx.ConnectError("never worked"), 1.0)
    one = feed()
    one.opened(ok())
    one.failed(httpx.ReadError("gone"), 1.0)
    with pytest.raises(UnavailableError) as away:
        one.opened(refused(503, "unavailable", **{"Retry-After": "3"}))
    one.failed(away.value, 2.0)
    assert one.pause_s == 3.0
    with pytest.raises(ApiError):
        one.failed(away.value, 12.0)


def test_lost_events_are_never_passed_over_in_silence() -> None:
    """Unless they may be."""
    lost = b'event: lost\ndata: {"code":"expired","message":"m","resume":true}\n\n'
    one = feed()
    one.opened(ok())
    with pytest.raises(EventsLostError):
        one.take(lost)
    one = feed(allow_lost=True)
    one.opened(ok())
    assert one.take(lost) == []
    assert followed(SseEvent("vm_of_tomorrow", b"{}", "x")) is None


@pytest.mark.parametrize(
    ("window", "by", "label", "expected"),
    [
        (None, None, "", [("by", "vm")]),
        (WindowUnit.DAY, None, "", [("window", "day")]),
        (WindowUnit.DAY, GroupBy.NONE, "", [("window", "day"), ("by", "day")]),
        (WindowUnit.HOUR, GroupBy.VM, "", [("window", "hour"), ("by", "vm")]),
        (None, None, "team", [("by", "label:team")]),
    ],
)
def test_groups_are_asked_for_as_the_api_names_them(
    window: WindowUnit | None, by: GroupBy | None, label: str, expected: list[tuple[str, str]]
) -> None:
    """By VM where nothing is said."""
    call = usage_page(None, None, (), window, by, label, "Europe/Berlin", 5, "")
    assert call.params == (("limit", "5"), ("tz", "Europe/Berlin"), *expected)
