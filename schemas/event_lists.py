"""Lists of events: what is asked on `events.query.<customer>`, and what HTTP answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, get_args

import msgspec

from schemas.codec import decoder
from schemas.errors import ErrorInfo
from schemas.events import VmEvent
from schemas.ids import EventId, VmId
from schemas.units import Counter
from schemas.vms import Timestamp

EVENT_TYPES: tuple[str, ...] = tuple(str(kind.__struct_config__.tag) for kind in get_args(VmEvent))
"""Types of events of VMs: the last token of their subjects."""

MAX_EVENTS = 1000
"""In one answer."""
MAX_EVENT_VMS = 100
"""That a list or a stream may be narrowed to."""

EventType = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]{0,62}$(?!\n)")]


class EventPlace(msgspec.Struct, frozen=True, kw_only=True):
    """Where an event stands in a list: by its time, then by its id."""

    at: Timestamp
    event_id: EventId


class EventsQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which events of the subject's customer.

    Attributes:
        start: Not before this; by the event's own time.
        end: Before this.
        vm_ids: Only of these; empty for all.
        types: Only of these; empty for all.
        newest_first: The other order otherwise.
        limit: So many at most.
        after: Go on behind this one.
    """

    start: Timestamp | None = None
    end: Timestamp | None = None
    vm_ids: Annotated[tuple[VmId, ...], msgspec.Meta(max_length=MAX_EVENT_VMS)] = ()
    types: Annotated[tuple[EventType, ...], msgspec.Meta(max_length=64)] = ()
    newest_first: bool = True
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_EVENTS)] = 100
    after: EventPlace | None = None


class EventsFound(msgspec.Struct, frozen=True, kw_only=True):
    """Events out of the store.

    Attributes:
        events: Their bodies, as their hosts wrote them.
        next: Ask on from here; None at the end.
        stored_sequence: All that `VM_EVENTS` holds up to there had been stored before they were
            read.
    """

    events: tuple[msgspec.Raw, ...]
    next: EventPlace | None = None
    stored_sequence: Counter = 0


class EventsReply(msgspec.Struct, frozen=True, kw_only=True):
    """Either what was found or the reason why there is nothing."""

    found: EventsFound | None = None
    error: ErrorInfo | None = None


class EventList(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `GET /v1/events`.

    Attributes:
        next_cursor: Empty on the last page.
        follow_from: As `Last-Event-ID` of a stream it goes on where the store was when this was
            read: nothing is left out, and what stands in the list already may come again.
    """

    events: tuple[VmEvent, ...]
    next_cursor: str = ""
    follow_from: str = ""


class StreamNotice(msgspec.Struct, frozen=True, kw_only=True):
    """Data of the SSE events `end` and `lost`: why a stream ends, or what it lacks.

    Attributes:
        code: Stable.
        message: What to do.
        resume: Connecting once more makes sense.
    """

    code: str
    message: str
    resume: bool


decode_events_query: Callable[[bytes], EventsQuery] = decoder(EventsQuery)
decode_events_reply: Callable[[bytes], EventsReply] = decoder(EventsReply)
