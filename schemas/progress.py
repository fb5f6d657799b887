"""How far hosts have come: what collectors say of it in the stream of enriched frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec

from schemas.codec import decoder
from schemas.ids import HostId

UnixMs = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class HostProgress(msgspec.Struct, frozen=True, kw_only=True):
    """What a collector says on `metrics.progress.<collector>`.

    Attributes:
        complete_ms: Per host a time, Unix ms: every row of the host's frames with an earlier tick
            stands before this message in `METRICS_ENRICHED`, or was rejected. It names all hosts
            that the collector knows it of, so that a newer message makes older ones superfluous.
    """

    complete_ms: dict[HostId, UnixMs]


decode_host_progress: Callable[[bytes], HostProgress] = decoder(HostProgress)
