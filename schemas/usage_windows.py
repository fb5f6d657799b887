"""Usage in many windows at once, on `usage.windows.<customer>`, and as HTTP answers it."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated

import msgspec

from schemas.codec import decoder
from schemas.errors import ErrorInfo
from schemas.ids import CustomerId, HostId, VmId
from schemas.units import Counter
from schemas.vms import Timestamp
from schemas.wishes import LabelName, LabelValue

MAX_WINDOWS = 1000
"""In one question on the bus."""
MAX_WINDOW_ROWS = 2000
"""In one answer: NATS takes 1 MiB."""


class GroupBy(StrEnum):
    """What a row of a window is about.

    Attributes:
        NONE: All VMs together.
        VM: One VM.
        LABEL: All VMs that have, now, the same value of a label.
    """

    NONE = "none"
    VM = "vm"
    LABEL = "label"


class WindowUnit(StrEnum):
    """How long a window is."""

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"


class UsageWindowsQuery(msgspec.Struct, frozen=True, kw_only=True):
    """What was used in each of some windows that follow one another.

    Attributes:
        edges_ms: Unix ms: the windows' begins, and the last one's end.
        vm_ids: Only these; empty for all.
        group: Rows of a window.
        label: Whose values make groups.
        limit: Rows at most.
        after: `after` of the answer before, where it stopped within the first of these windows.
    """

    edges_ms: Annotated[tuple[Counter, ...], msgspec.Meta(min_length=2, max_length=MAX_WINDOWS + 1)]
    vm_ids: Annotated[tuple[VmId, ...], msgspec.Meta(max_length=1000)] = ()
    group: GroupBy = GroupBy.VM
    label: LabelName | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_WINDOW_ROWS)] = MAX_WINDOW_ROWS
    after: Annotated[str, msgspec.Meta(max_length=100)] = ""


class WindowFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What a group of VMs used in a window: `counter(end) - counter(start)`, summed.

    Attributes:
        vm_id: Of a row for a VM.
        label: Of a row for a label: its value; None for the VMs without it.
        vms: That had samples in the window.
        incarnations: Likewise.
        samples: Ticks stored in the window, as far as they can be counted: see `samples_since`.
        simulated: Any of it came from the simulator.
    """

    vm_id: VmId | None = None
    label: LabelValue | None = None
    vms: Counter
    incarnations: Counter
    samples: Counter
    uptime_ms: Counter
    cpu_ns: Counter
    mem_kib_ms: Counter
    disk_read_bytes: Counter
    disk_write_bytes: Counter
    net_rx_bytes: Counter
    net_tx_bytes: Counter
    simulated: bool = False


class NumberedFigures(WindowFigures, frozen=True, kw_only=True):
    """The same, of the window with this number among those that were asked for."""

    window: Counter


class WindowsFound(msgspec.Struct, frozen=True, kw_only=True):
    """Rows in the order of their windows, then of their groups.

    Attributes:
        windows: So many windows are answered whole.
        after: Of the one behind them, the last group that is answered; empty if none is.
        samples_since, complete_until, lost_hosts: As in a `UsageReport`.
    """

    rows: tuple[NumberedFigures, ...]
    windows: Counter
    after: str = ""
    samples_since: Timestamp | None = None
    complete_until: Timestamp | None = None
    lost_hosts: tuple[HostId, ...] = ()


class WindowsReply(msgspec.Struct, frozen=True, kw_only=True):
    """Either what was found or the reason why there is nothing."""

    found: WindowsFound | None = None
    error: ErrorInfo | None = None


class WindowUsage(WindowFigures, frozen=True, kw_only=True):
    """A row of `GET /v1/usage` with windows: what a group used in `[start, end)`.

    Attributes:
        start: In the zone that was asked for.
        end: Likewise.
        complete_until: What was used before this will not change any more; None if not known.
        complete: The whole window lies before that time.
    """

    start: Timestamp
    end: Timestamp
    complete_until: Timestamp | None = None
    complete: bool = False


class UsageWindows(msgspec.Struct, frozen=True, kw_only=True):
    """A page of usage by windows. The windows of all pages together add up to `[start, end)`.

    Attributes:
        window: How long each is; None for one window, the whole.
        by: Rows of a window.
        label: Whose values make groups.
        next_cursor: Empty on the last page.
        complete_until, complete: Of all windows on the page.
    """

    customer_id: CustomerId
    start: Timestamp
    end: Timestamp
    tz: str
    window: WindowUnit | None
    by: GroupBy
    label: LabelName | None = None
    rows: tuple[WindowUsage, ...]
    next_cursor: str = ""
    samples_since: Timestamp | None = None
    complete_until: Timestamp | None = None
    complete: bool = False
    lost_hosts: tuple[HostId, ...] = ()


decode_usage_windows_query: Callable[[bytes], UsageWindowsQuery] = decoder(UsageWindowsQuery)
decode_windows_reply: Callable[[bytes], WindowsReply] = decoder(WindowsReply)
