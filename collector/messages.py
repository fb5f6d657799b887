"""What comes in and what goes out, as plain values: the pipeline's both ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from runtime.publisher import Outgoing
from schemas.codec import encode
from schemas.errors import InvalidIdError
from schemas.events import HostEvent
from schemas.frames import (
    HEADER_DETAIL,
    HEADER_ORIGIN_SEQUENCE,
    HEADER_ORIGIN_STREAM,
    HEADER_REASON,
    HEADER_REPLAY,
)
from schemas.replays import Retry
from schemas.subjects import host_event, host_of_metrics, metrics_rejected

UNKNOWN_HOST = "unknown"
MAX_PAYLOAD_BYTES = 1024 * 1024 - 8 * 1024
"""NATS takes 1 MiB, headers included; a message beyond that costs the connection."""

_MAX_DETAIL = 400


class Intake(NamedTuple):
    """One message of `METRICS_RAW`.

    Attributes:
        sequence: Its place in the stream.
        redelivered: The server has delivered it before.
        replay: The operator's replay that it came by; empty if it came from its host.
        complete_ms: What its host claims with it; see `HEADER_COMPLETE_MS`.
        retry: The act that put it back; None if it was not refused before.
    """

    subject: str
    data: bytes
    stream: str
    sequence: int
    redelivered: bool
    replay: str = ""
    complete_ms: int | None = None
    retry: Retry | None = None


class PutBack(NamedTuple):
    """A frame that was refused once, and leaves for the batcher now."""

    host_id: str
    tick_ms: int
    retry: Retry


class Now(NamedTuple):
    """Both clocks at one moment, in ns: the wall's Unix time, and one that never goes back."""

    wall_ns: int
    monotonic_ns: int


@dataclass(slots=True)
class Outcome:
    """What becomes of one message.

    Attributes:
        side: Rejects and events. They go before `enriched`: were it the other way round, a
            crash in between could leave a refused row neither here nor there.
        enriched: The good rows; None for a message that is refused as a whole.
        wait: Nothing is decided yet: deliver the message again in a moment.
        samples: Good rows.
        rejected: Refused rows per reason; a message without readable rows counts as one.
        lag_ns: Collected less sampled; None for a message that is refused as a whole, or replayed.
        claim: A host and what it claims of itself, where that can be believed.
        passed_on: Host and tick of a frame that leaves for the batcher, unless it is replayed.
        put_back: The same of a frame that was refused before.
    """

    side: list[Outgoing] = field(default_factory=list)
    enriched: Outgoing | None = None
    wait: bool = False
    samples: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    lag_ns: int | None = None
    claim: tuple[str, int] | None = None
    passed_on: tuple[str, int] | None = None
    put_back: PutBack | None = None


def event_message(event: HostEvent) -> Outgoing:
    """An event on `host.evt.<host>.<type>`."""
    return Outgoing(host_event(event), encode(event), str(event.event_id))


def replay_headers(intake: Intake) -> dict[str, str]:
    """What follows from a replayed message says so; of what else its headers claim, nothing."""
    return {HEADER_REPLAY: intake.replay} if intake.replay else {}


def reject_message(intake: Intake, reason: str, detail: str, payload: bytes) -> Outgoing:
    """What was refused, with why and where from in the headers.

    A payload too large for the bus is cut, and the detail says so: the whole stands at its
    origin.
    """
    if len(payload) > MAX_PAYLOAD_BYTES:
        detail = f"cut from {len(payload)} bytes; {detail}"
        payload = payload[:MAX_PAYLOAD_BYTES]
    try:
        host = host_of_metrics(intake.subject)
    except InvalidIdError:
        host = UNKNOWN_HOST
    return Outgoing(
        metrics_rejected(reason, host),
        payload,
        f"{intake.stream}:{intake.sequence}:{reason}",
        {
            HEADER_REASON: reason,
            HEADER_DETAIL: _one_line(detail),
            HEADER_ORIGIN_STREAM: intake.stream,
            HEADER_ORIGIN_SEQUENCE: str(intake.sequence),
            **replay_headers(intake),
        },
    )


def _one_line(text: str) -> str:
    """Text of unknown origin as a header value: printable ASCII, of limited length."""
    return "".join(c if " " <= c <= "~" else "?" for c in text[:_MAX_DETAIL]).strip() or "-"
