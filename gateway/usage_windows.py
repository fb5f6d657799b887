"""Usage by windows of time and by groups of VMs, page by page."""

from __future__ import annotations

import base64
import csv
import io
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec

from gateway.auth import Principal, Scope
from gateway.calendars import at, edges
from gateway.errors import RefusedError
from gateway.host_names import HostNames
from gateway.settings import GatewaySettings
from gateway.store_questions import StoreQuestions
from runtime.bus import Bus
from runtime.errors import TransientError
from schemas.api import FieldProblem
from schemas.codec import decoder, encode
from schemas.errors import ErrorCode, MalformedMessageError
from schemas.subjects import usage_windows
from schemas.units import Counter
from schemas.usage_windows import (
    MAX_WINDOWS,
    GroupBy,
    NumberedFigures,
    UsageWindows,
    UsageWindowsQuery,
    WindowsFound,
    WindowUnit,
    WindowUsage,
    decode_windows_reply,
)
from schemas.vms import METERS

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)


class _Cursor(msgspec.Struct, frozen=True, kw_only=True):
    """Where a page begins: a window, and the group in it that the page before ended with."""

    at_ms: Counter
    after: str = ""


_decode_cursor = decoder(_Cursor)


@dataclass(frozen=True, slots=True)
class WindowsWanted:
    """What is asked for.

    Attributes:
        unit: None for one window, the whole.
        label: Whose values make groups, if `by` says so.
        cursor: Of the page before; empty for the first.
    """

    start: datetime
    end: datetime
    zone: ZoneInfo
    unit: WindowUnit | None
    by: GroupBy
    label: str | None
    vm_ids: tuple[UUID, ...]
    limit: int
    cursor: str


class UsageWindowService:
    """Answers for principals that are authenticated already.

    Raises RefusedError for what it will not do, and TransientError when the bus is away.
    """

    def __init__(self, bus: Bus, names: HostNames, settings: GatewaySettings) -> None:
        self._store = StoreQuestions(bus, settings.usage_timeout_s)
        self._names = names

    async def page(self, principal: Principal, wanted: WindowsWanted) -> UsageWindows:
        """A page of what the customer's VMs used."""
        principal.require(Scope.USAGE_READ)
        start_ms = -((_EPOCH - wanted.start) // _MS)
        end_ms = -((_EPOCH - wanted.end) // _MS)
        cursor = _place(wanted.cursor, start_ms, end_ms)
        first = cursor.at_ms if cursor else start_ms
        most = min(MAX_WINDOWS, wanted.limit + 1)
        places = edges(first, end_ms, wanted.unit, wanted.zone, most)
        query = UsageWindowsQuery(
            edges_ms=tuple(places),
            vm_ids=wanted.vm_ids,
            group=wanted.by,
            label=wanted.label,
            limit=wanted.limit,
            after=cursor.after if cursor else "",
        )
        found = await self._found(principal.customer_id, query)
        done = places[found.windows]
        more = _Cursor(at_ms=done, after=found.after) if done < end_ms else None
        until = found.complete_until
        return UsageWindows(
            customer_id=principal.customer_id,
            start=wanted.start.astimezone(wanted.zone),
            end=wanted.end.astimezone(wanted.zone),
            tz=wanted.zone.key,
            window=wanted.unit,
            by=wanted.by,
            label=wanted.label,
            rows=tuple(_row(row, places, wanted.zone, until) for row in found.rows),
            next_cursor=_text(more) if more else "",
            samples_since=found.samples_since,
            complete_until=until,
            complete=until is not None and (at(done, wanted.zone) <= until),
            lost_hosts=self._names.all(principal, found.lost_hosts),
        )

    async def _found(self, customer_id: str, query: UsageWindowsQuery) -> WindowsFound:
        reply = await self._store.ask(usage_windows(customer_id), query, decode_windows_reply)
        found = reply.found
        windows = len(query.edges_ms) - 1
        if found is None or found.windows > windows or not (found.windows or found.after):
            raise TransientError("the usage reply makes no sense")
        if any(row.window >= windows for row in found.rows):
            raise TransientError("the usage reply is about other windows")
        return found


def _row(
    row: NumberedFigures, places: list[int], zone: ZoneInfo, until: datetime | None
) -> WindowUsage:
    figures = {name: getattr(row, name) for name in row.__struct_fields__ if name != "window"}
    end = at(places[row.window + 1], zone)
    return WindowUsage(
        start=at(places[row.window], zone),
        end=end,
        complete_until=until,
        complete=until is not None and end <= until,
        **figures,
    )


def as_csv(page: UsageWindows) -> bytes:
    """A page as CSV (RFC 4180): a line of names, then one for each row."""
    group = {GroupBy.VM: ["vm_id"], GroupBy.LABEL: [f"label_{page.label}"], GroupBy.NONE: []}[
        page.by
    ]
    out = io.StringIO()
    writer = csv.writer(out)
    figures = ("vms", "incarnations", "samples", *METERS)
    writer.writerow(["start", "end", *group, *figures, "simulated", "complete", "complete_until"])
    for row in page.rows:
        name = [row.vm_id] if page.by is GroupBy.VM else [row.label or ""] if group else []
        until = row.complete_until
        writer.writerow(
            [
                row.start.isoformat(),
                row.end.isoformat(),
                *name,
                *(getattr(row, figure) for figure in figures),
                str(row.simulated).lower(),
                str(row.complete).lower(),
                until.isoformat() if until else "",
            ]
        )
    return out.getvalue().encode()


def _text(cursor: _Cursor) -> str:
    return base64.urlsafe_b64encode(encode(cursor)).rstrip(b"=").decode()


def _place(text: str, start_ms: int, end_ms: int) -> _Cursor | None:
    if not text:
        return None
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        cursor: _Cursor = _decode_cursor(data)
    except (ValueError, MalformedMessageError):
        cursor = _Cursor(at_ms=0)
    if not start_ms <= cursor.at_ms < end_ms or len(cursor.after) > 100:
        message = "no cursor of a page of this window"
        raise RefusedError(
            ErrorCode.BAD_REQUEST,
            f"cursor: {message}",
            fields=(FieldProblem(field="cursor", message=message),),
        )
    return cursor
