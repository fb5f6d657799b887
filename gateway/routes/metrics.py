"""Metrics: what VMs do now, and what they did."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from litestar import Response, get
from litestar.params import QueryParameter

from gateway.bodies import StrictRequest
from gateway.metrics import MAX_LIVE_VMS, MetricService
from gateway.routes.common import answer, instant, query_id, token_ending, who, wrong
from gateway.routes.events import Streamed
from runtime.clock import utc_now
from schemas.live import LiveSample
from schemas.series import MAX_POINTS, MAX_SERIES_VMS, METRICS, STEPS_MS, SeriesQuery, SeriesReport

VmIds = Annotated[
    list[str] | None, QueryParameter(name="vm_id", description="These VMs. Default: all.")
]
SeriesVmIds = Annotated[
    list[str] | None,
    QueryParameter(name="vm_id", description=f"Which VMs; 1 to {MAX_SERIES_VMS} of them."),
]
Start = Annotated[
    str, QueryParameter(description="RFC 3339, with offset. Default: 5 minutes before `end`.")
]
End = Annotated[str, QueryParameter(description="RFC 3339, with offset. Default: now.")]
Points = Annotated[
    int, QueryParameter(ge=1, le=MAX_POINTS, description="Points per VM and metric, at most.")
]
Step = Annotated[int | None, QueryParameter(description="Length of a step instead of `points`.")]
Metrics = Annotated[
    list[str] | None,
    QueryParameter(name="metric", description=f"Default: all of {', '.join(METRICS)}."),
]
_EARLIEST = datetime(1970, 1, 2, tzinfo=UTC)
_LATEST = datetime(2200, 1, 1, tzinfo=UTC)


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


@get("/metrics/series", summary="Recent metrics of VMs, step by step")
async def get_series(
    request: StrictRequest,
    vm_ids: SeriesVmIds = None,
    start: Start = "",
    end: End = "",
    points: Points = 300,
    step_ms: Step = None,
    metric_names: Metrics = None,
) -> Response[SeriesReport]:
    """What VMs did in `[start, end)`: by how much counters grew in each step, as whole numbers.

    Steps are as short as `points` allows and the store still knows. A step without a sample has
    null; nothing is made up. The steps add up to the usage of the whole.
    """
    if not vm_ids or len(vm_ids) > MAX_SERIES_VMS:
        raise wrong("vm_id", f"name 1 to {MAX_SERIES_VMS} VMs")
    until = instant("end", end) if end else utc_now()
    begin = instant("start", start) if start else until - timedelta(minutes=5)
    if begin >= until:
        raise wrong("end", "must come after start")
    if not _EARLIEST <= begin < until <= _LATEST:
        raise wrong("start" if begin < _EARLIEST else "end", "lies too far away")
    names = tuple(part for text in metric_names or () for part in text.split(",") if part)
    if not set(names) <= set(METRICS):
        raise wrong("metric", f"must be one of {', '.join(METRICS)}")
    if step_ms is not None and step_ms not in STEPS_MS:
        raise wrong("step_ms", f"must be one of {', '.join(map(str, STEPS_MS))}")
    service: MetricService = request.app.state.metrics
    query = SeriesQuery(
        start=begin,
        end=until,
        vm_ids=tuple(query_id("vm_id", text) for text in vm_ids),
        points=points,
        step_ms=step_ms,
        metrics=tuple(dict.fromkeys(names)),
    )
    return answer(await service.series(who(request), query))


HANDLERS = (get_live, get_series)
