"""What the frames in the stream say of the agent that made them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from nats.js.api import ConsumerConfig, DeliverPolicy

from runtime.bus import Bus
from schemas.frames import decode_frame
from schemas.subjects import METRICS_RAW
from schemas.units import NS_PER_MS, NS_PER_S, TICK_MS

_NEXT_WITHIN_S = 10.0


class Head(NamedTuple):
    """A frame without its columns, and when the stream took it (Unix ns)."""

    seq: int
    tick_ms: int
    late_ns: int
    missed: int
    rows: int
    size_bytes: int
    stored_at_ns: int


async def last_in_stream(bus: Bus) -> int:
    """Stream sequence of the newest frame; 0 without one."""
    return (await bus.js.stream_info(METRICS_RAW)).state.last_seq


async def read_heads(bus: Bus, first: int, last: int) -> list[Head]:
    """The frames at these stream sequences, in the stream's order."""
    heads: list[Head] = []
    subscription = await bus.js.subscribe(
        "",
        stream=METRICS_RAW,
        ordered_consumer=True,
        config=ConsumerConfig(deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=first),
        pending_msgs_limit=-1,
        pending_bytes_limit=-1,
    )
    try:
        while len(heads) <= last - first:
            message = await subscription.next_msg(timeout=_NEXT_WITHIN_S)
            frame = decode_frame(message.data)
            stored_at_ns = round(message.metadata.timestamp.timestamp() * NS_PER_S)
            heads.append(
                Head(
                    frame.seq, frame.tick_ms, frame.late_ns, frame.missed_ticks, frame.rows,
                    len(message.data), stored_at_ns,
                )
            )  # fmt: skip
    finally:
        await subscription.unsubscribe()
    return heads


def punctuality(heads: Sequence[Head]) -> dict[str, Any]:
    """Ticks, those missed, and how late they began, in ms."""
    late_ms = sorted(head.late_ns / NS_PER_MS for head in heads)
    return {
        "ticks": len(heads),
        "missed": sum(head.missed for head in heads),
        "lateness_ms": {
            "p50": round(_quantile(late_ms, 0.5), 2),
            "p99": round(_quantile(late_ms, 0.99), 2),
            "max": round(late_ms[-1], 2),
        },
    }


def catching_up(heads: Sequence[Head], back_at_ns: int) -> dict[str, Any]:
    """How an outage that ended at `back_at_ns` was made up for.

    Args:
        heads: Frames from before the outage until all was sent, in the stream's order.
        back_at_ns: When the server took connections again, Unix ns.
    """
    late = [
        head
        for head in heads
        if head.stored_at_ns >= back_at_ns and head.tick_ms * NS_PER_MS < back_at_ns
    ]
    seqs = [head.seq for head in heads]
    waited_s = (late[0].stored_at_ns - back_at_ns) / NS_PER_S
    sending_s = (late[-1].stored_at_ns - late[0].stored_at_ns) / NS_PER_S
    per_s = len(late) / sending_s if sending_s else float("inf")
    return {
        "frames": len(late),
        "size_bytes": sum(head.size_bytes for head in late),
        "first_after_s": round(waited_s, 2),
        "sent_in_s": round(sending_s, 2),
        "frames_per_s": round(per_s),
        "ratio_to_live": round(per_s * TICK_MS / 1000, 1),
        "holes": max(seqs) - min(seqs) + 1 - len(set(seqs)),
        "repeated": len(seqs) - len(set(seqs)),
        "out_of_order": sum(b < a for a, b in pairwise(seqs)),
    }


def _quantile(ordered: Sequence[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]
