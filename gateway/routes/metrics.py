"""Metrics: what VMs do now, and what they did."""

from __future__ import annotations

from typing import Annotated, Any

from litestar import Response, get
from litestar.params import QueryParameter

from gateway.bodies import StrictRequest
from gateway.metrics import MAX_LIVE_VMS, MetricService
from gateway.routes.common import query_id, token_ending, who, wrong
from gateway.routes.events import Streamed
from schemas.live import LiveSample

VmIds = Annotated[
    list[str] | None, QueryParameter(name="vm_id", description="These VMs. Default: all.")
]


@get("/metrics/live", summary="Stream 100 ms samples of VMs", operation_class=Streamed)
async def get_live(request: StrictRequest, vm_ids: VmIds = None) -> Response[LiveSample]:
    """Each sample of the VMs as it comes, ten times a second, as server-sent events (`sample`).

    To a client that reads more slowly the newest sample of each VM is sent, which says how many
    were `skipped`. Nothing is sent again: a stream begins with now. Its last event, `end`, says why
    it ends.
    """
    wanted = tuple(query_id("vm_id", text) for text in vm_ids or ())
    if len(wanted) > MAX_LIVE_VMS:
        raise wrong("vm_id", f"at most {MAX_LIVE_VMS} of them")
    service: MetricService = request.app.state.metrics
    found: Response[Any] = await service.live(who(request), wanted, token_ending(request))
    return found


HANDLERS = (get_live,)
