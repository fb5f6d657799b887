"""Frames that were refused: looked at, sent once more, thrown away."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from uuid import UUID

import msgspec

from decisec.streams.acts import audited
from decisec.streams.adjusting import Telling
from decisec.streams.decoding import Row, sample_rows
from decisec.streams.reading import Record, Stretch, record_at, records, remove
from decisec.streams.selection import Selection
from runtime.bus import Bus
from runtime.errors import PoisonError
from runtime.publisher import Publisher
from schemas.errors import InvalidIdError, MalformedMessageError
from schemas.events import AdjustmentCause
from schemas.frames import (
    HEADER_DETAIL,
    HEADER_ORIGIN_SEQUENCE,
    HEADER_ORIGIN_STREAM,
    HEADER_REASON,
    EnrichedFrame,
    Frame,
    RejectReason,
    decode_enriched_frame,
    decode_frame,
    replay_of,
)
from schemas.ids import new_id, token
from schemas.replays import Refused, retry_headers
from schemas.subjects import METRICS_REJECTED, host_of_metrics, metrics_enriched, metrics_raw

RETRY = "rejected-retry"
DISCARD = "rejected-discard"
_CUT = "cut from "
_MAX_DETAIL = 1000


class Reject(msgspec.Struct, frozen=True, kw_only=True):
    """One message of `METRICS_REJECTED`.

    Attributes:
        at: When it was set aside.
        rows: Samples in it; None if it is no frame.
        replay: The replay that it came by; empty if it came from its host.
    """

    sequence: int
    at: datetime
    host: str
    reason: str
    rows: int | None
    detail: str
    origin_stream: str
    origin_sequence: str
    replay: str = ""


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Rejects of one host for one reason."""

    host: str
    reason: str
    messages: int
    rows: int
    first_at: datetime
    last_at: datetime
    first_sequence: int
    last_sequence: int


class Treated(msgspec.Struct, frozen=True, kw_only=True):
    """What has been done with rejects.

    Attributes:
        done: Sequences that were sent once more, or thrown away.
        left: Sequences that were not, with the reason.
    """

    act_id: UUID
    done: list[int]
    left: dict[int, str]


def reject_of(record: Record) -> Reject:
    """What a message of `METRICS_REJECTED` says."""
    frame = frame_in(record)
    try:
        host = host_of_metrics(record.subject)
    except InvalidIdError:
        host = "unknown"
    return Reject(
        sequence=record.sequence,
        at=record.at,
        host=host,
        reason=record.headers.get(HEADER_REASON, "unknown"),
        rows=None if frame is None else frame.rows,
        detail=record.headers.get(HEADER_DETAIL, ""),
        origin_stream=record.headers.get(HEADER_ORIGIN_STREAM, ""),
        origin_sequence=record.headers.get(HEADER_ORIGIN_SEQUENCE, ""),
        replay=replay_of(record.headers),
    )


def frame_in(record: Record) -> Frame | EnrichedFrame | None:
    """The frame that was refused; None if the bytes are none."""
    refused_by_store = record.headers.get(HEADER_REASON) == RejectReason.STORE_REFUSED
    try:
        return (decode_enriched_frame if refused_by_store else decode_frame)(record.data)
    except MalformedMessageError:
        return None


def samples_in(record: Record) -> list[Row]:
    """The samples that were refused, decoded; none if the bytes are no frame."""
    frame = frame_in(record)
    return [] if frame is None else list(sample_rows(frame))


async def rejects(
    bus: Bus, stretch: Stretch, selection: Selection, reason: str = ""
) -> AsyncIterator[Record]:
    """Rejects of some hosts, or of one reason.

    Raises:
        TransientError: The server did not answer.
    """
    filters = selection.filters(METRICS_REJECTED)
    async for batch in records(bus, METRICS_REJECTED, stretch, filters):
        for record in batch:
            if not reason or record.headers.get(HEADER_REASON) == reason:
                yield record


def grouped(found: Iterable[Reject]) -> list[Group]:
    """By host and reason, in that order."""
    groups: dict[tuple[str, str], list[Reject]] = {}
    for reject in found:
        groups.setdefault((reject.host, reject.reason), []).append(reject)
    return [
        Group(
            host=host,
            reason=reason,
            messages=len(members),
            rows=sum(member.rows or 0 for member in members),
            first_at=members[0].at,
            last_at=members[-1].at,
            first_sequence=members[0].sequence,
            last_sequence=members[-1].sequence,
        )
        for (host, reason), members in sorted(groups.items())
    ]


async def retry(bus: Bus, sequences: Sequence[int], *, actor: str, reason: str) -> Treated:
    """Send rejects once more to where they came from; each leaves the rejects once it is sent.

    What is refused again comes back as a new reject. What is not is listed as an adjustment, with
    the reason: by the collector, or, for what the store had refused, from here.

    Raises:
        TransientError: The server did not answer; what was done until then is audited.
    """
    publisher = Publisher(bus)
    act_id = new_id()
    # Of what goes to the collector it tells by itself, and knows more.
    telling = Telling(bus, AdjustmentCause.RETRY, act_id, reason)

    async def send(record: Record) -> str:
        """Why it cannot be; empty once it is sent."""
        reject = reject_of(record)
        if reject.detail.startswith(_CUT):
            return (
                f"its bytes were cut; replay its origin, {reject.origin_stream} "
                f"{reject.origin_sequence}"
            )
        try:
            host = token(record.subject.rpartition(".")[2])
        except InvalidIdError:
            return "it came from no valid host"
        refused_by_store = reject.reason == RejectReason.STORE_REFUSED
        refused = Refused.REPLAYED if reject.replay else Refused.SENT
        frame = frame_in(record)
        if refused_by_store and frame is not None:
            await telling.ahead([frame])
        try:
            await publisher.publish(
                metrics_enriched(host) if refused_by_store else metrics_raw(host),
                record.data,
                msg_id=f"replay:{act_id}:{record.sequence}",
                headers=retry_headers(str(act_id), reason, refused),
            )
        except PoisonError as error:
            return str(error)
        return ""

    try:
        return await _treat(bus, sequences, RETRY, act_id, actor=actor, reason=reason, act=send)
    finally:
        await telling.rest()


async def discard(bus: Bus, sequences: Sequence[int], *, actor: str, reason: str) -> Treated:
    """Throw rejects away; nothing of them is left but the audit.

    Raises:
        TransientError: The server did not answer; what was done until then is audited.
    """

    async def drop(_record: Record) -> str:
        return ""  # that it is taken out is all

    return await _treat(bus, sequences, DISCARD, new_id(), actor=actor, reason=reason, act=drop)


async def _treat(
    bus: Bus,
    sequences: Sequence[int],
    action: str,
    act_id: UUID,
    *,
    actor: str,
    reason: str,
    act: Callable[[Record], Awaitable[str]],
) -> Treated:
    """Do something with each reject, and take it out of the stream where that went well."""
    treated = Treated(act_id=act_id, done=[], left={})
    kinds: Counter[str] = Counter()
    async with audited(
        bus,
        act_id=act_id,
        actor=actor,
        action=action,
        target=METRICS_REJECTED,
        reason=reason,
        details={"sequences": spans(sequences)},
    ) as found:
        try:
            for sequence in sequences:
                record = await record_at(bus, METRICS_REJECTED, sequence)
                why = "there is none" if record is None else await act(record)
                if record is not None and not why and await remove(bus, METRICS_REJECTED, sequence):
                    treated.done.append(sequence)
                    reject = reject_of(record)
                    kinds[f"{reject.reason} {reject.host}"] += 1
                else:
                    treated.left[sequence] = why or "somebody else has taken it out"
        finally:
            found["done"] = spans(treated.done) or "none"
            found["kinds"] = _short(", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())))
    return treated


def spans(sequences: Sequence[int]) -> str:
    """Sequences in few words: `3-5, 9`; cut where it would get too long."""
    parts: list[tuple[int, int]] = []
    for sequence in sorted(set(sequences)):
        if parts and parts[-1][1] + 1 == sequence:
            parts[-1] = (parts[-1][0], sequence)
        else:
            parts.append((sequence, sequence))
    return _short(", ".join(f"{a}-{b}" if a != b else str(a) for a, b in parts))


def _short(text: str) -> str:
    return text if len(text) <= _MAX_DETAIL else f"{text[:_MAX_DETAIL]} …"
