"""Events: what happened to the customer's VMs, as a list and as it happens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from litestar import Response, get
from litestar.openapi.spec import (
    OpenAPIMediaType,
    OpenAPIResponse,
    OpenAPIType,
    Operation,
    Schema,
)
from litestar.params import HeaderParameter, QueryParameter

from gateway import sse
from gateway.bodies import StrictRequest
from gateway.events import EventService, EventsWanted
from gateway.routes.common import (
    answer,
    instant,
    query_id,
    streaming,
    token_ending,
    who,
    wrong,
)
from schemas.event_lists import EVENT_TYPES, MAX_EVENT_VMS, MAX_EVENTS, EventList

_TYPE = re.compile(r"[a-z][a-z0-9_]{0,62}", re.ASCII)

VmIds = Annotated[list[str] | None, QueryParameter(name="vm_id", description="Only of these VMs.")]
Types = Annotated[
    list[str] | None,
    QueryParameter(name="type", description=f"Only of these types: {', '.join(EVENT_TYPES)}."),
]
Start = Annotated[str, QueryParameter(description="Not before this. RFC 3339, with offset.")]
End = Annotated[str, QueryParameter(description="Before this. RFC 3339, with offset.")]
Order = Annotated[Literal["newest", "oldest"], QueryParameter(description="Which ones come first.")]
Limit = Annotated[int, QueryParameter(ge=1, le=MAX_EVENTS, description="Events on a page.")]
Cursor = Annotated[str, QueryParameter(description="`next_cursor` of the page before.")]
After = Annotated[
    str, QueryParameter(description="Of a stream: as `Last-Event-ID`, which goes before it.")
]
LastEventId = Annotated[
    str,
    HeaderParameter(name="Last-Event-ID", description="Of a stream: go on behind this event."),
]


@dataclass
class Streamed(Operation):
    """A route whose answer can be had as a stream of events, too."""

    def __post_init__(self) -> None:
        """Add it to the answer."""
        found = (self.responses or {}).get("200")
        if isinstance(found, OpenAPIResponse):
            found.content = found.content or {}
            found.content[sse.MEDIA_TYPE] = OpenAPIMediaType(schema=Schema(type=OpenAPIType.STRING))


@get("/events", summary="Events of VMs, listed or streamed", operation_class=Streamed)
async def get_events(
    request: StrictRequest,
    vm_ids: VmIds = None,
    types: Types = None,
    start: Start = "",
    end: End = "",
    order: Order = "newest",
    limit: Limit = 100,
    cursor: Cursor = "",
    after: After = "",
    last_event_id: LastEventId = "",
) -> Response[EventList]:
    """What happened to the customer's VMs.

    With `Accept: text/event-stream` it is a stream of server-sent events: those after
    `Last-Event-ID`, without a hole, then each as it happens. It begins with now if there is none.
    Comments keep it alive; its last event, `end`, says why it ends.
    """
    wanted = tuple(query_id("vm_id", text) for text in vm_ids or ())
    kinds = tuple(types or ())
    if len(wanted) > MAX_EVENT_VMS:
        raise wrong("vm_id", f"at most {MAX_EVENT_VMS} of them")
    if len(kinds) > 64 or not all(_TYPE.fullmatch(kind) for kind in kinds):
        raise wrong("type", f"must be one of {', '.join(EVENT_TYPES)}")
    service: EventService = request.app.state.events
    if streaming(request):
        for name, given in (("start", start), ("end", end), ("cursor", cursor)):
            if given:
                raise wrong(name, "is of a list; a stream goes on after `Last-Event-ID`")
        place = last_event_id or after
        found: Response[Any] = await service.stream(
            who(request), wanted, kinds, place, token_ending(request)
        )
        return found
    return answer(
        await service.page(
            who(request),
            EventsWanted(
                start=instant("start", start) if start else None,
                end=instant("end", end) if end else None,
                vm_ids=wanted,
                kinds=kinds,
                newest_first=order == "newest",
                limit=limit,
                cursor=cursor,
            ),
        )
    )


HANDLERS = (get_events,)
