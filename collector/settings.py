"""Settings of the collector: `DECISEC_COLLECTOR_*`, or the table `[collector]`."""

from __future__ import annotations

from typing import Annotated

import msgspec

from runtime.settings import CommonSettings

_Limit = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
_Count = Annotated[int, msgspec.Meta(ge=1, le=65_536)]


class CollectorSettings(CommonSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the collector takes besides the common settings.

    Attributes:
        max_future_s: A tick this far ahead of the collector's clock is refused. The past has no
            limit: late and replayed frames are legal.
        suspect_after_s: A host without a frame for this long is suspected.
        silent_after_s: A host without a frame for this long is silent.
        host_lost_after_s: A host of which usage answers wait, and that sends nothing for this long,
            is declared lost: they no longer wait for it, and a gap may stay in bills. 0 for never.
            Longer than `silent_after_s`; see `docs/operations.md` for what to take.
        forget_after_s: What is known of a host that stays silent is dropped after this long.
        unknown_wait_s: How long a frame with a VM that no record names waits for the record.
        cpu_overhead_threads: CPUs that a VMM may use besides its vCPUs.
        cpu_tolerance_ms: CPU time that is allowed on top, once per sample.
        late_tolerance_s: How long, in ticks, the last counters of an incarnation that is sampled
            no more are kept.
        max_batch: Frames handled at once at most.
        max_ack_pending: Frames of a partition delivered and not yet acknowledged at most.
        ack_wait_s: What a collector had and did not acknowledge comes to the next one this long
            after it was killed. A living one's are renewed.
    """

    max_future_s: _Limit = 5.0
    suspect_after_s: _Limit = 1.0
    silent_after_s: _Limit = 10.0
    host_lost_after_s: Annotated[float, msgspec.Meta(ge=0, le=2_592_000)] = 0.0
    forget_after_s: _Limit = 3600.0
    unknown_wait_s: Annotated[float, msgspec.Meta(ge=0, le=60)] = 2.0
    cpu_overhead_threads: Annotated[int, msgspec.Meta(ge=0, le=64)] = 2
    cpu_tolerance_ms: Annotated[int, msgspec.Meta(ge=0, le=60_000)] = 250
    late_tolerance_s: _Limit = 600.0
    max_batch: _Count = 128
    max_ack_pending: _Count = 1024
    ack_wait_s: Annotated[float, msgspec.Meta(ge=1, le=600)] = 3.0

    def __post_init__(self) -> None:
        """Refuse what would give up hosts that are merely slow."""
        if 0 < self.host_lost_after_s <= self.silent_after_s:
            raise ValueError(
                f"`host_lost_after_s`: 0, or more than silent_after_s ({self.silent_after_s:g})"
            )
