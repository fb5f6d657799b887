"""Usage queries on `usage.query.<customer>` and their answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec

from schemas.codec import decoder
from schemas.errors import ErrorInfo
from schemas.ids import CustomerId, HostId, VmId
from schemas.units import Counter
from schemas.vms import Timestamp


class UsageQuery(msgspec.Struct, frozen=True, kw_only=True):
    """What was used in `[start, end)`. The customer is the subject's, never the message's.

    Attributes:
        start: Inclusive; down to the tick while ticks are kept, then a whole minute, hour or day.
        end: Exclusive, likewise.
        vm_ids: Only these VMs; empty means all.
    """

    start: Timestamp
    end: Timestamp
    vm_ids: Annotated[tuple[VmId, ...], msgspec.Meta(max_length=1000)] = ()


class UsageRow(msgspec.Struct, frozen=True, kw_only=True):
    """One VM's usage in the window: `counter(end) - counter(start)`, summed over incarnations.

    Attributes:
        incarnations: How many had samples in the window.
        samples: Ticks stored in the window, as far as they can be counted: see `samples_since`.
        settled: The newest incarnation seen has its final sample in the store.
        simulated: Any of it came from the simulator.
    """

    vm_id: VmId
    incarnations: Counter
    samples: Counter
    uptime_ms: Counter
    cpu_ns: Counter
    mem_kib_ms: Counter
    disk_read_bytes: Counter
    disk_write_bytes: Counter
    net_rx_bytes: Counter
    net_tx_bytes: Counter
    settled: bool = False
    simulated: bool = False


class UsageReport(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to a `UsageQuery`: a row per VM, and their sums.

    Attributes:
        samples_since: `samples` are counted from here on only, because which ticks there were
            before is no longer kept; None if they are those of the whole window.
        complete_until: What was used in the window before this time will not change any more: all
            samples are in the store. None if that is not known.
        complete: The whole window lies before that time. Asked again, its counters and samples
            are the same.
        lost_hosts: Hosts that are declared lost, and for which that time did not wait: should
            their samples come all the same, they count.
    """

    customer_id: CustomerId
    start: Timestamp
    end: Timestamp
    vms: tuple[UsageRow, ...]
    totals: dict[str, Counter]
    samples_since: Timestamp | None = None
    complete_until: Timestamp | None = None
    complete: bool = False
    lost_hosts: tuple[HostId, ...] = ()


class UsageReply(msgspec.Struct, frozen=True, kw_only=True):
    """Either a report or the reason why there is none."""

    report: UsageReport | None = None
    error: ErrorInfo | None = None


decode_usage_query: Callable[[bytes], UsageQuery] = decoder(UsageQuery)
decode_usage_reply: Callable[[bytes], UsageReply] = decoder(UsageReply)
