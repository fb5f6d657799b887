"""Usage: what is billed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Literal
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

import msgspec
from litestar import Response, get
from litestar.openapi.spec import (
    OpenAPIMediaType,
    OpenAPIResponse,
    OpenAPIType,
    Operation,
    Schema,
)
from litestar.params import QueryParameter

from gateway.bodies import StrictRequest
from gateway.calendars import UnknownZoneError, midnight, zone_of
from gateway.routes.common import answer, instant, query_id, who, wrong
from gateway.usage_reports import UsageReportService
from gateway.usage_windows import UsageWindowService, WindowsWanted, as_csv
from runtime.clock import utc_now
from schemas.usage import UsageReport
from schemas.usage_windows import MAX_WINDOW_ROWS, GroupBy, UsageWindows, WindowUnit
from schemas.wishes import LabelName

CSV = "text/csv"
_UNITS = frozenset(unit.value for unit in WindowUnit)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_EARLIEST = datetime(1970, 1, 2, tzinfo=UTC)
_LATEST = datetime(2200, 1, 1, tzinfo=UTC)

Instant = Annotated[
    str,
    QueryParameter(
        description="RFC 3339, with offset, or with `tz` a date. Default: today, in UTC or `tz`."
    ),
]
VmIds = Annotated[list[str] | None, QueryParameter(name="vm_id", description="Only these VMs.")]
Window = Annotated[
    WindowUnit | None, QueryParameter(description="Cut the whole into such windows.")
]
Zone = Annotated[str, QueryParameter(description="Whose hours and days: IANA name. Default: UTC.")]
By = Annotated[
    list[str] | None,
    QueryParameter(
        description="Rows of a window: `vm`, `label:NAME`, or neither for all VMs together; "
        "`minute`, `hour` or `day` is the same as `window`. Default: `vm`."
    ),
]
Format = Annotated[
    Literal["", "json", "csv"], QueryParameter(name="format", description="JSON or CSV.")
]
Limit = Annotated[
    int | None, QueryParameter(ge=1, le=MAX_WINDOW_ROWS, description="Rows on a page.")
]
Cursor = Annotated[str, QueryParameter(description="`next_cursor` of the page before.")]


@dataclass
class Tabular(Operation):
    """A route whose answer can be had as CSV, too."""

    def __post_init__(self) -> None:
        """Add it to the answer."""
        found = (self.responses or {}).get("200")
        if isinstance(found, OpenAPIResponse):
            found.content = found.content or {}
            found.content[CSV] = OpenAPIMediaType(schema=Schema(type=OpenAPIType.STRING))


@get("/usage", summary="Usage in windows of time", operation_class=Tabular)
async def get_usage(
    request: StrictRequest,
    start: Instant = "",
    end: Instant = "",
    vm_ids: VmIds = None,
    window: Window = None,
    tz: Zone = "",
    by: By = None,
    answer_format: Format = "",
    limit: Limit = None,
    cursor: Cursor = "",
) -> Response[UsageReport | UsageWindows]:
    """What the customer's VMs have used in `[start, end)`.

    With none of `window`, `tz`, `by`, `format`, `limit` and `cursor` it is one report of all VMs.
    With any of them it is a page of rows, by windows and groups: each exact, and all of them
    together the whole. CSV (`format=csv` or `Accept: text/csv`) has the next page in `Link`.
    """
    wanted = tuple(query_id("vm_id", text) for text in vm_ids or ())
    if len(wanted) > 1000:
        raise wrong("vm_id", "at most 1000 of them")
    tabular = answer_format == "csv" or (
        not answer_format and request.accept.best_match(["application/json", CSV]) == CSV
    )
    zone = _zone(tz or "UTC")
    begin, until = _between(start, end, zone, dates=bool(tz))
    if not (window or tz or by or answer_format or limit or cursor or tabular):
        reports: UsageReportService = request.app.state.usage_reports
        return answer(await reports.report(who(request), begin, until, wanted))
    if begin < _EARLIEST or until > _LATEST:
        raise wrong("start" if begin < _EARLIEST else "end", "lies too far away")
    unit, group, label = _groups(by or [], window)
    windows: UsageWindowService = request.app.state.usage_windows
    page = await windows.page(
        who(request),
        WindowsWanted(
            start=begin,
            end=until,
            zone=zone,
            unit=unit,
            by=group,
            label=label,
            vm_ids=wanted,
            limit=limit or 1000,
            cursor=cursor,
        ),
    )
    return _csv(request, page) if tabular else answer(page)


def _csv(request: StrictRequest, page: UsageWindows) -> Response[Any]:
    headers = {
        "Content-Disposition": 'attachment; filename="usage.csv"',
        "Decisec-Complete": "true" if page.complete else "false",
    }
    if page.next_cursor:
        query = [pair for pair in request.query_params.multi_items() if pair[0] != "cursor"]
        following = urlencode([*query, ("cursor", page.next_cursor)])
        headers["Link"] = f'</v1/usage?{following}>; rel="next"'
        headers["Decisec-Next-Cursor"] = page.next_cursor
    return Response(as_csv(page), headers=headers, media_type=f"{CSV}; charset=utf-8")


def _groups(
    by: list[str], window: WindowUnit | None
) -> tuple[WindowUnit | None, GroupBy, str | None]:
    """How windows are cut, and what rows are about."""
    named = [part for text in by for part in text.split(",") if part]
    units = [WindowUnit(part) for part in named if part in _UNITS]
    if window is not None:
        units.append(window)
    if len(set(units)) > 1:
        raise wrong("by", "at most one of minute, hour and day")
    unit = units[0] if units else None
    groups = [part for part in named if part not in _UNITS]
    if len(groups) > 1:
        raise wrong("by", "at most one of vm and label:NAME")
    if not groups:
        # Whoever names nothing gets VMs, whoever names a time only gets that.
        return unit, GroupBy.NONE if named else GroupBy.VM, None
    if groups[0] == "vm":
        return unit, GroupBy.VM, None
    kind, _, name = groups[0].partition(":")
    try:
        label = msgspec.convert(name, LabelName)
    except msgspec.ValidationError:
        label = ""
    if kind != "label" or not label:
        raise wrong("by", "must be vm, label:NAME, minute, hour or day")
    return unit, GroupBy.LABEL, label


def _zone(name: str) -> ZoneInfo:
    try:
        return zone_of(name)
    except UnknownZoneError as error:
        raise wrong("tz", str(error)) from None


def _between(start: str, end: str, zone: ZoneInfo, *, dates: bool) -> tuple[datetime, datetime]:
    def moment(field: str, text: str) -> datetime:
        if dates and _DATE.fullmatch(text):
            try:
                return midnight(date.fromisoformat(text), zone)
            except (ValueError, OverflowError):
                raise wrong(field, "is no date") from None
        return instant(field, text)

    today = utc_now().astimezone(zone).date()
    begin = moment("start", start) if start else midnight(today, zone)
    until = moment("end", end) if end else midnight(today + timedelta(days=1), zone)
    if begin >= until:
        raise wrong("end", "must come after start")
    return begin, until


HANDLERS = (get_usage,)
