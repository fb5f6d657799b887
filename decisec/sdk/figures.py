"""The blocking client's events, metrics and usage by windows."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator
from datetime import datetime
from uuid import UUID

import httpx

from decisec.sdk import feeds
from decisec.sdk.calls import Call, T
from decisec.sdk.errors import ApiError
from decisec.sdk.feeds import PATIENCE_S, READ_S, Feed, FollowedEvent
from decisec.sdk.sse import SseEvent
from schemas.event_lists import EventList
from schemas.events import VmEvent
from schemas.live import LiveSample
from schemas.series import SeriesReport
from schemas.usage_windows import GroupBy, UsageWindows, WindowUnit, WindowUsage


class Figures:
    """What `Client` has besides the calls about VMs."""

    _http: httpx.Client

    def _send(self, call: Call[T], attempts: int = 0) -> T:
        raise NotImplementedError

    def event_page(
        self,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        vm_ids: Iterable[UUID | str] = (),
        types: Iterable[str] = (),
        newest_first: bool = True,
        limit: int = 100,
        cursor: str = "",
    ) -> EventList:
        """A page of events; `events(after=page.follow_from)` goes on behind the newest."""
        return self._send(
            feeds.event_page(start, end, vm_ids, types, limit, cursor, newest_first=newest_first)
        )

    def list_events(
        self,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        vm_ids: Iterable[UUID | str] = (),
        types: Iterable[str] = (),
        newest_first: bool = True,
        page_size: int = 100,
    ) -> Iterator[VmEvent]:
        """What happened to VMs, fetched page by page; `start` and `end` are times with a zone."""
        vm_ids, types, cursor = tuple(vm_ids), tuple(types), ""
        while True:
            page = self.event_page(
                start=start,
                end=end,
                vm_ids=vm_ids,
                types=types,
                newest_first=newest_first,
                limit=page_size,
                cursor=cursor,
            )
            yield from page.events
            cursor = page.next_cursor
            if not cursor:
                return

    def events(
        self,
        *,
        after: str = "",
        vm_ids: Iterable[UUID | str] = (),
        types: Iterable[str] = (),
        patience_s: float = PATIENCE_S,
        allow_lost: bool = False,
    ) -> Generator[FollowedEvent, None, None]:
        """Events as they happen, each once and in order, for ever: it connects again by itself.

        Args:
            after: The `place` of an event to go on behind; from now on without.
            vm_ids: Only of these; empty for all.
            types: Only of these; empty for all.
            patience_s: How long the API may be away before its error is raised.
            allow_lost: Go on although some after `after` may be gone; else EventsLostError.

        Examples:
            >>> place = client.event_page(limit=1).follow_from
            >>> paused = client.pause_vm(vm_id, wait_s=30)
            >>> resumed = client.resume_vm(vm_id, wait_s=30)
            >>> stream = client.events(after=place, vm_ids=[vm_id], types=["vm_resumed"])
            >>> event, place = next(stream)
            >>> type(event).__name__
            'VmResumed'
            >>> stream.close()
        """
        feed = feeds.events_feed(after, vm_ids, types, patience_s, allow_lost=allow_lost)
        for event in self._follow(feed):
            if (found := feeds.followed(event)) is not None:
                yield found

    def live_metrics(
        self, vm_ids: Iterable[UUID | str] = (), *, patience_s: float = PATIENCE_S
    ) -> Generator[LiveSample, None, None]:
        """Each 100 ms sample of these VMs, or of all, as it comes; it connects again by itself.

        Who reads slowly gets the newest; `skipped` says how many it stands for besides itself.
        What came while there was no connection does not come later. It ends with NotFoundError
        once all VMs that were named are deleted.

        Examples:
            >>> samples = client.live_metrics([vm_id])
            >>> one, two = next(samples), next(samples)
            >>> two.uptime_ms - one.uptime_ms > 0
            True
            >>> samples.close()
        """
        for event in self._follow(feeds.live_feed(vm_ids, patience_s)):
            if (found := feeds.sample(event)) is not None:
                yield found

    def metric_series(
        self,
        vm_ids: Iterable[UUID | str],
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        points: int = 300,
        step_ms: int | None = None,
        metrics: Iterable[str] = (),
    ) -> SeriesReport:
        """What VMs did in a window, step by step; the last five minutes by default."""
        return self._send(feeds.series(vm_ids, start, end, points, step_ms, metrics))

    def usage_page(
        self,
        *,
        start: datetime | str | None = None,
        end: datetime | str | None = None,
        vm_ids: Iterable[UUID | str] = (),
        window: WindowUnit | None = None,
        by: GroupBy | None = None,
        label: str = "",
        tz: str = "UTC",
        limit: int = 1000,
        cursor: str = "",
    ) -> UsageWindows:
        """A page of `usage_windows`."""
        return self._send(
            feeds.usage_page(start, end, vm_ids, window, by, label, tz, limit, cursor)
        )

    def usage_windows(
        self,
        *,
        start: datetime | str | None = None,
        end: datetime | str | None = None,
        vm_ids: Iterable[UUID | str] = (),
        window: WindowUnit | None = None,
        by: GroupBy | None = None,
        label: str = "",
        tz: str = "UTC",
        page_size: int = 1000,
    ) -> Iterator[WindowUsage]:
        """Usage by windows of time and by groups, fetched page by page.

        Args:
            start: A time with a zone, or a date in `tz` as text; today by default.
            end: Likewise.
            vm_ids: Only of these; empty for all.
            window: How long each is; one for all without.
            by: A row for each VM (the default), or for all together.
            label: A row for each value of this label instead.
            tz: Whose hours and days.
            page_size: Rows that are fetched at once.
        """
        vm_ids, cursor = tuple(vm_ids), ""
        while True:
            page = self.usage_page(
                start=start,
                end=end,
                vm_ids=vm_ids,
                window=window,
                by=by,
                label=label,
                tz=tz,
                limit=page_size,
                cursor=cursor,
            )
            yield from page.rows
            cursor = page.next_cursor
            if not cursor:
                return

    def _follow(self, feed: Feed) -> Generator[SseEvent, None, None]:
        while True:
            try:
                with self._http.stream(
                    "GET", feed.path, params=list(feed.params), headers=dict(feed.headers),
                    timeout=httpx.Timeout(self._http.timeout.connect, read=READ_S),
                ) as response:  # fmt: skip
                    if response.status_code != httpx.codes.OK:
                        response.read()
                    feed.opened(response)
                    for data in response.iter_bytes():
                        yield from feed.take(data)
            except (ApiError, httpx.TransportError) as error:
                feed.failed(error, time.monotonic())
            else:
                feed.failed(None, time.monotonic())
            time.sleep(feed.pause_s)
