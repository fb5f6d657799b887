"""Usage: what is billed."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from litestar import Response, get
from litestar.params import QueryParameter

from gateway.bodies import StrictRequest
from gateway.routes.common import answer, instant, query_id, service, who, wrong
from runtime.clock import utc_now
from schemas.usage import UsageReport

Instant = Annotated[str, QueryParameter(description="RFC 3339, with offset. Default: today, UTC.")]
VmIds = Annotated[list[str] | None, QueryParameter(name="vm_id", description="Only these VMs.")]


@get("/usage", summary="Usage in a window of time")
async def get_usage(
    request: StrictRequest, start: Instant = "", end: Instant = "", vm_ids: VmIds = None
) -> Response[UsageReport]:
    """What the customer's VMs have used in `[start, end)`."""
    today = utc_now().replace(hour=0, minute=0, second=0, microsecond=0)
    begin = instant("start", start) if start else today
    until = instant("end", end) if end else today + timedelta(days=1)
    if begin >= until:
        raise wrong("end", "must come after start")
    wanted = tuple(query_id("vm_id", text) for text in vm_ids or ())
    if len(wanted) > 1000:
        raise wrong("vm_id", "at most 1000 of them")
    return answer(await service(request).usage(who(request), begin, until, wanted))


HANDLERS = (get_usage,)
