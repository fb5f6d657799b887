"""How a stream is read along: where to go on, how long to wait, when it is over. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import httpx
import msgspec

from decisec.sdk.calls import Call, moment, refusal, uuid_of
from decisec.sdk.errors import ApiError, RateLimitedError, UnavailableError, ended
from decisec.sdk.sse import SseEvent, SseParser
from schemas.event_lists import EVENT_TYPES, EventList, StreamNotice
from schemas.events import VmEvent, decode_vm_event
from schemas.live import LiveSample
from schemas.series import SeriesReport
from schemas.usage_windows import GroupBy, UsageWindows, WindowUnit

READ_S = 45.0
"""Without even a comment for so long, a connection is taken for dead."""
PATIENCE_S = 60.0
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0
_PASSING = (RateLimitedError, UnavailableError)


class FollowedEvent(NamedTuple):
    """An event, and the place behind it: give it to `events` as `after` to go on there."""

    event: VmEvent
    place: str


class EventsLostError(Exception):
    """Events after the place that was given may be gone: the API no longer keeps them.

    Attributes:
        place: That place.
    """

    def __init__(self, place: str) -> None:
        super().__init__("events after the given place may be gone; list them, and begin anew")
        self.place = place


class Feed:
    """One stream that is read along over any number of connections.

    Args:
        path: Of the stream.
        params: Of its query.
        place: Where it goes on; empty to begin with now.
        patience_s: How long the API may be away.
        allow_lost: Go on although something may be missing.

    Attributes:
        pause_s: How long to wait before the next connection.
        place: Behind the last event that was handed out.
    """

    def __init__(
        self,
        path: str,
        params: tuple[tuple[str, str], ...],
        place: str = "",
        *,
        patience_s: float = PATIENCE_S,
        allow_lost: bool = False,
    ) -> None:
        self.path = path
        self.params = params
        self.pause_s = 0.0
        self._parser = SseParser(place)
        self._patience_s = patience_s
        self._allow_lost = allow_lost
        self._opened = False
        self._ended = False
        self._failures = 0
        self._failing_since_s: float | None = None

    @property
    def place(self) -> str:
        """Behind the last event that was handed out."""
        return self._parser.place

    @property
    def headers(self) -> Mapping[str, str]:
        """Of the next request."""
        headers = {"Accept": "text/event-stream"}
        return {**headers, "Last-Event-ID": self.place} if self.place else headers

    def opened(self, response: httpx.Response) -> None:
        """Take note of an answer.

        Raises:
            ApiError: It is none that a stream follows.
        """
        if response.status_code != httpx.codes.OK:
            raise refusal(response)
        # What the connection before left half read comes once more.
        self._parser = SseParser(self.place)
        self._opened, self._ended = True, False

    def take(self, data: bytes) -> list[SseEvent]:
        """The events that these bytes complete.

        Raises:
            ApiError: The stream has ended for good.
            EventsLostError: Something may be missing.
        """
        self._failures, self._failing_since_s = 0, None
        events = []
        for event in self._parser.feed(data):
            if event.kind == "end":
                notice = msgspec.json.decode(event.data, type=StreamNotice)
                if not notice.resume:
                    raise ended(notice)
                self._ended = True
            elif event.kind == "lost":
                if not self._allow_lost:
                    raise EventsLostError(self.place)
            else:
                events.append(event)
        return events

    def failed(self, error: Exception | None, now_s: float) -> None:
        """A connection is over; wait for the next one, or raise what will not pass.

        Args:
            error: What the API or the connection to it raised; None if it ended without a word.
            now_s: Monotonic time.
        """
        if self._ended:
            self.pause_s = 0.0 if self._failures == 0 else self._backoff_s()
            self._failures += 1
            return
        if self._failing_since_s is None:
            self._failing_since_s = now_s
        passes = isinstance(error, _PASSING) or not isinstance(error, ApiError)
        tired = now_s - self._failing_since_s > self._patience_s
        # Whoever has not read anything yet wants to know at once that it does not work.
        if error is not None and (tired or not passes or not self._opened):
            raise error
        asked_s = error.retry_after_s if isinstance(error, ApiError) else None
        self.pause_s = max(self._backoff_s(), asked_s or 0.0)
        self._failures += 1

    def _backoff_s(self) -> float:
        return min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(self._failures, 10))


def followed(event: SseEvent) -> FollowedEvent | None:
    """An event of a VM; None for a type that this version does not know."""
    if event.kind not in EVENT_TYPES:
        return None
    return FollowedEvent(decode_vm_event(event.data), event.place)


def sample(event: SseEvent) -> LiveSample | None:
    """A sample; None for what this version does not know."""
    if event.kind != "sample":
        return None
    return msgspec.json.decode(event.data, type=LiveSample)


def events_feed(
    after: str,
    vm_ids: Iterable[UUID | str],
    types: Iterable[str],
    patience_s: float,
    *,
    allow_lost: bool,
) -> Feed:
    """The stream of `GET /v1/events`."""
    params = (*_vms(vm_ids), *(("type", kind) for kind in types))
    return Feed("/v1/events", params, after, patience_s=patience_s, allow_lost=allow_lost)


def live_feed(vm_ids: Iterable[UUID | str], patience_s: float) -> Feed:
    """The stream of `GET /v1/metrics/live`."""
    return Feed("/v1/metrics/live", _vms(vm_ids), patience_s=patience_s)


def event_page(
    start: datetime | None,
    end: datetime | None,
    vm_ids: Iterable[UUID | str],
    types: Iterable[str],
    limit: int,
    cursor: str,
    *,
    newest_first: bool,
) -> Call[EventList]:
    """`GET /v1/events`: one page."""
    params = [
        ("limit", str(limit)),
        ("order", "newest" if newest_first else "oldest"),
        *_between(start, end),
        *_vms(vm_ids),
        *(("type", kind) for kind in types),
    ]
    if cursor:
        params.append(("cursor", cursor))
    return Call("GET", "/v1/events", EventList, params=tuple(params))


def series(
    vm_ids: Iterable[UUID | str],
    start: datetime | None,
    end: datetime | None,
    points: int,
    step_ms: int | None,
    metrics: Iterable[str],
) -> Call[SeriesReport]:
    """`GET /v1/metrics/series`."""
    params = [
        ("points", str(points)),
        *_vms(vm_ids),
        *_between(start, end),
        *(("metric", metric) for metric in metrics),
    ]
    if step_ms is not None:
        params.append(("step_ms", str(step_ms)))
    return Call("GET", "/v1/metrics/series", SeriesReport, params=tuple(params))


def usage_page(
    start: datetime | str | None,
    end: datetime | str | None,
    vm_ids: Iterable[UUID | str],
    window: WindowUnit | None,
    by: GroupBy | None,
    label: str,
    tz: str,
    limit: int,
    cursor: str,
) -> Call[UsageWindows]:
    """`GET /v1/usage` by windows and groups: one page."""
    params = [("limit", str(limit)), ("tz", tz), *_between(start, end), *_vms(vm_ids)]
    if window is not None:
        params.append(("window", window.value))
    if label:
        params.append(("by", f"label:{label}"))
    elif by is GroupBy.VM or (by is None and window is None):
        params.append(("by", "vm"))
    elif by is GroupBy.NONE and window is not None:
        params.append(("by", window.value))
    if cursor:
        params.append(("cursor", cursor))
    return Call("GET", "/v1/usage", UsageWindows, params=tuple(params))


def _vms(vm_ids: Iterable[UUID | str]) -> tuple[tuple[str, str], ...]:
    return tuple(("vm_id", str(uuid_of(vm_id))) for vm_id in vm_ids)


def _between(start: datetime | str | None, end: datetime | str | None) -> list[tuple[str, str]]:
    """A window; texts are dates in the zone that is asked for."""
    found = []
    for name, value in (("start", start), ("end", end)):
        if value is not None:
            found.append((name, value if isinstance(value, str) else moment(name, value)))
    return found
