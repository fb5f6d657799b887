"""The audit log: what was done and refused."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import msgspec
from litestar import Response, get
from litestar.params import QueryParameter

from gateway.audit_log import AuditLog
from gateway.bodies import StrictRequest
from gateway.routes.common import answer, instant, who, wrong
from runtime.clock import utc_now
from schemas.audit_log import MAX_AUDIT_DAYS, MAX_AUDIT_PAGE, AuditPage, AuditQuery
from schemas.audit_log import Cursor as CursorText

_DATE_TIME = {"format": "date-time"}
Start = Annotated[
    str | None,
    QueryParameter(
        description="RFC 3339, with offset. Default: a day before the end.",
        schema_extra=_DATE_TIME,
    ),
]
End = Annotated[
    str | None,
    QueryParameter(description="RFC 3339, with offset. Default: now.", schema_extra=_DATE_TIME),
]
Limit = Annotated[int, QueryParameter(ge=1, le=MAX_AUDIT_PAGE, description="Entries on a page.")]
Cursor = Annotated[str, QueryParameter(description="`next_cursor` of the page before.")]


@get("/audit", summary="What was done and refused, newest first")
async def get_audit(
    request: StrictRequest,
    start: Start = None,
    end: End = None,
    limit: Limit = 100,
    cursor: Cursor = "",
) -> Response[AuditPage]:
    """Entries of the audit log in `[start, end)`, 31 days at most.

    An entry is there some seconds after the act. An act that takes time is told twice, under one
    `act_id`: before anything is done, and at its end.
    """
    until = instant("end", end) if end is not None else utc_now() + timedelta(seconds=1)
    begin = instant("start", start) if start is not None else until - timedelta(days=1)
    if begin >= until:
        raise wrong("end", "must come after start")
    if until - begin > timedelta(days=MAX_AUDIT_DAYS):
        raise wrong("start", f"at most {MAX_AUDIT_DAYS} days before end")
    try:
        at = msgspec.convert(cursor, CursorText)
    except msgspec.ValidationError:
        raise wrong("cursor", "none that this API has given") from None
    log: AuditLog = request.app.state.audit_log
    query = AuditQuery(start=begin, end=until, limit=limit, cursor=at)
    return answer(await log.page(who(request), query))


HANDLERS = (get_audit,)
