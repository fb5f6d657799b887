"""Recent metrics as series, on `metrics.series.<customer>`, and as HTTP answers them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec

from schemas.codec import decoder
from schemas.errors import ErrorInfo
from schemas.ids import CustomerId, HostId, VmId
from schemas.units import Counter
from schemas.vms import METERS, Timestamp

MAX_POINTS = 1000
MAX_SERIES_VMS = 20
STEPS_MS: tuple[int, ...] = (
    100, 200, 500, 1000, 2000, 5000, 10_000, 30_000,
    60_000, 120_000, 300_000, 600_000, 1_800_000,
    3_600_000, 7_200_000, 21_600_000, 43_200_000, 86_400_000,
)  # fmt: skip
"""Each is a whole number of one of the units in which the store keeps counters."""
METRICS: tuple[str, ...] = (*METERS, "mem_bytes", "samples")
"""What can be asked for."""

Metric = Annotated[str, msgspec.Meta(pattern=f"^(?:{'|'.join(METRICS)})$(?!\\n)")]


class SeriesQuery(msgspec.Struct, frozen=True, kw_only=True):
    """What some of the subject's customer's VMs did in a window.

    Attributes:
        start: Taken down to a whole step.
        end: Taken up to a whole step.
        vm_ids: Which.
        points: The finest step is taken that needs no more; ignored where a step is given.
        step_ms: One of `STEPS_MS`; None for the finest that does.
        metrics: Empty for all.
    """

    start: Timestamp
    end: Timestamp
    vm_ids: Annotated[tuple[VmId, ...], msgspec.Meta(min_length=1, max_length=MAX_SERIES_VMS)]
    points: Annotated[int, msgspec.Meta(ge=1, le=MAX_POINTS)] = 300
    step_ms: int | None = None
    metrics: tuple[Metric, ...] = ()


class VmSeries(msgspec.Struct, frozen=True, kw_only=True):
    """One VM's points, one per step, by metric.

    Counters are what they grew by within the step, so that they add up; of a step that follows a
    gap that is since the last sample before it. None where there was no sample.

    Attributes:
        values: `mem_bytes` is the greatest reading, where the step is less than a minute;
            `samples` how many ticks there were, None where they are no longer known.
    """

    vm_id: VmId
    values: dict[str, tuple[Counter | None, ...]]


class SeriesReport(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to a `SeriesQuery`.

    Attributes:
        start: Begin of the first step.
        end: End of the last.
        complete_until, complete, lost_hosts: As in a `UsageReport`.
    """

    customer_id: CustomerId
    start: Timestamp
    end: Timestamp
    step_ms: int
    points: int
    series: tuple[VmSeries, ...]
    complete_until: Timestamp | None = None
    complete: bool = False
    lost_hosts: tuple[HostId, ...] = ()


class SeriesReply(msgspec.Struct, frozen=True, kw_only=True):
    """Either a report or the reason why there is none."""

    report: SeriesReport | None = None
    error: ErrorInfo | None = None


decode_series_query: Callable[[bytes], SeriesQuery] = decoder(SeriesQuery)
decode_series_reply: Callable[[bytes], SeriesReply] = decoder(SeriesReply)
