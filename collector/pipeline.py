"""From the bytes of a raw frame to what is published for it. No I/O, and no clock of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

import numpy as np

from collector.checks import (
    CPU,
    CpuLimit,
    Ints,
    Rows,
    all_advance,
    counters_of,
    judge,
    memory_of,
    read_ns,
    select,
)
from collector.enrichment import Layout, enrich, lay_out
from collector.gaps import Gaps
from collector.history import History
from collector.messages import (
    MAX_PAYLOAD_BYTES,
    Intake,
    Now,
    Outcome,
    PutBack,
    event_message,
    reject_message,
    replay_headers,
)
from collector.silence import Silence, SilenceLimits
from collector.specs import SpecIndex
from runtime.publisher import Outgoing
from schemas.errors import MalformedMessageError
from schemas.events import HostEvent
from schemas.frames import MAX_FRAME_BYTES, Frame, RejectReason, decode_frame, encode_frame
from schemas.subjects import metrics_enriched
from schemas.units import NS_PER_MS, NS_PER_S, TICK_MS

_MAX_LAYOUTS = 8
"""Kept per host: a host of many VMs splits its tick over several frames."""

_MAX_UNHEARD = 256
"""Hosts remembered of which only replayed frames have come."""

Refused = Mapping[RejectReason, Sequence[int] | Rows]


_CPU = CpuLimit(overhead_threads=2, tolerance_ns=250 * NS_PER_MS)
_SILENCE = SilenceLimits(1 * NS_PER_S, 10 * NS_PER_S, 3600 * NS_PER_S)


def _everyone(_host_id: str) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Rules:
    """What the pipeline goes by; see `CollectorSettings`."""

    max_future_ns: int = 5 * NS_PER_S
    unknown_wait_ns: int = 2 * NS_PER_S
    late_tolerance_ms: int = 600_000
    cpu: CpuLimit = _CPU
    silence: SilenceLimits = _SILENCE


@dataclass(slots=True)
class _Host:
    """What is remembered of one host.

    Attributes:
        run: Counts how often the agent run changed from one frame to the next.
    """

    history: History
    layouts: list[Layout] = field(default_factory=list)
    run_id: UUID | None = None
    run: int = 0


class Pipeline:
    """Decides about frames, in stream order. Not thread-safe.

    Args:
        rules: What to go by.
        specs: Shared with others; its own if None.
        tells_of: Whether the silence of a host is this pipeline's to tell.
        others_until: Place in the stream of the last frame, of a host that it is not to tell of,
            whose forerunners have come here as well. What comes of such a host after that place
            comes since the stream was parted anew: what it seems to miss went elsewhere.
        mixed_until: Up to this place in the stream, frames of a host may have gone to several
            partitions, one after the other: numbers are followed from there on.

    Attributes:
        specs: The records that enrichment goes by; whoever owns the pipeline feeds them.
        gaps: What is missing.
        silence: Who is quiet.
    """

    def __init__(
        self,
        rules: Rules,
        specs: SpecIndex | None = None,
        *,
        tells_of: Callable[[str], bool] = _everyone,
        others_until: int = 0,
        mixed_until: int = 0,
    ) -> None:
        self.rules = rules
        self.specs = SpecIndex(rules.unknown_wait_ns) if specs is None else specs
        self.gaps = Gaps()
        self.silence = Silence(rules.silence, tells_of)
        self._tells_of = tells_of
        self._others_until = others_until
        self._mixed_until = mixed_until
        self._hosts: dict[str, _Host] = {}

    def process(self, intake: Intake, now: Now) -> Outcome:
        """Decide about one message. Never raises, whatever the bytes are."""
        try:
            frame = self._read(intake, now)
        except MalformedMessageError as error:
            return _refuse_whole(Outcome(), intake, error, rows=1)
        at = datetime.fromtimestamp(now.wall_ns / NS_PER_S, UTC)
        outcome = Outcome(
            side=[event_message(event) for event in self._observe(intake, frame, now, at)]
        )
        if frame.tick_ms * NS_PER_MS > now.wall_ns + self.rules.max_future_ns:
            skew_ms = frame.tick_ms - now.wall_ns // NS_PER_MS
            skewed = MalformedMessageError(
                RejectReason.CLOCK_SKEW, f"the tick is {skew_ms} ms ahead of the collector's clock"
            )
            return _refuse_whole(outcome, intake, skewed, rows=frame.rows)
        host = self._hosts.get(frame.host)
        if host is None:
            host = self._hosts[frame.host] = _Host(History(self.rules.late_tolerance_ms))
        layout = self._layout(host, frame)
        if not layout.settled:
            if self.specs.worth_waiting(layout.unknown, now.monotonic_ns):
                outcome.wait = True
                return outcome
            layout.settled = True
        claimed_ms = None if intake.replay else intake.complete_ms
        if claimed_ms is not None and claimed_ms <= frame.tick_ms:
            outcome.claim = (frame.host, claimed_ms)
        refused, good = self._check(host, layout, frame)
        return _finish(outcome, intake, frame, layout, refused, good, now)

    def watch(self, now: Now) -> list[Outgoing]:
        """Events about hosts that send nothing, and an end to what is known of long silent ones."""
        at = datetime.fromtimestamp(now.wall_ns / NS_PER_S, UTC)
        events = [event_message(event) for event in self.silence.watch(now.monotonic_ns, at)]
        for host_id in self.silence.forget(now.monotonic_ns):
            self._forget(host_id)
        if len(self._hosts) > self.silence.hosts + _MAX_UNHEARD:
            # They came by replays only, and their silence says nothing.
            for host_id in [h for h in self._hosts if not self.silence.knows(h)]:
                self._forget(host_id)
        return events

    def _forget(self, host_id: str) -> None:
        self._hosts.pop(host_id, None)
        self.gaps.forget(host_id)

    def _read(self, intake: Intake, now: Now) -> Frame:
        if len(intake.data) > MAX_FRAME_BYTES:
            raise MalformedMessageError(
                RejectReason.INVALID_FRAME,
                f"{len(intake.data)} bytes; a frame has at most {MAX_FRAME_BYTES}",
            )
        frame = decode_frame(intake.data)
        if intake.subject.rpartition(".")[2] != frame.host:
            raise MalformedMessageError(
                RejectReason.WRONG_HOST, f"a frame of {frame.host} on {intake.subject}"
            )
        if frame.tick_ms % TICK_MS:
            raise MalformedMessageError(
                RejectReason.INVALID_FRAME, f"tick_ms {frame.tick_ms} is no multiple of {TICK_MS}"
            )
        return frame

    def _observe(self, intake: Intake, frame: Frame, now: Now, at: datetime) -> list[HostEvent]:
        """What its coming says of the host. A replayed frame may fill a gap, and says no more."""
        strayed = intake.sequence > self._others_until and not self._tells_of(frame.host)
        mixed = intake.sequence <= self._mixed_until
        alone = intake.redelivered or bool(intake.replay) or strayed or mixed
        gaps = self.gaps.observe(frame.host, frame.run_id, frame.seq, redelivered=alone, at=at)
        if intake.replay:
            return [*gaps]
        return [*self.silence.heard(frame.host, now.monotonic_ns, at), *gaps]

    def _layout(self, host: _Host, frame: Frame) -> Layout:
        layouts = host.layouts
        for place, layout in enumerate(layouts):
            if layout.vm_ids == frame.vm_ids and layout.incarnations == frame.incarnations:
                if layout.fits(frame, self.specs, host.history):
                    return layout
                del layouts[place]
                break
        layout = lay_out(frame, self.specs, host.history, self.rules.cpu)
        layouts.append(layout)
        if len(layouts) > _MAX_LAYOUTS:
            del layouts[0]
        return layout

    def _check(self, host: _Host, layout: Layout, frame: Frame) -> tuple[Refused, Rows | None]:
        """Refused rows per reason, and the good ones among the layout's kept rows (None: all)."""
        if frame.run_id != host.run_id:
            host.run_id = frame.run_id
            host.run += 1
        if not len(layout.cpus):
            return layout.refused, None
        counters = counters_of(frame, layout.kept)
        memory = memory_of(frame, layout.kept)
        history, where = host.history, layout.where
        if all_advance(
            counters=counters,
            memory=memory,
            before_ms=history.ticks(where),
            before=history.counters(where),
            tick_ms=frame.tick_ms,
            until_ns=read_ns(frame),
            cpus=layout.cpus,
            limit=self.rules.cpu,
        ):
            history.accept(where, tick_ms=frame.tick_ms, run=host.run, counters=counters)
            return layout.refused, None
        return self._judge(host, layout, frame, counters, memory)

    def _judge(
        self, host: _Host, layout: Layout, frame: Frame, counters: Ints, memory: Ints
    ) -> tuple[Refused, Rows | None]:
        history = host.history
        verdict = judge(
            counters=counters,
            memory=memory,
            before=history.before(layout.where, host.run),
            tick_ms=frame.tick_ms,
            until_ns=read_ns(frame),
            cpus=layout.cpus,
            limit=self.rules.cpu,
        )
        newer = np.flatnonzero(verdict.newer)
        if len(newer):
            if isinstance(layout.where, slice):
                places = newer + layout.where.start
            else:
                places = layout.where[newer]
            history.accept(places, tick_ms=frame.tick_ms, run=host.run, counters=counters[:, newer])
        bad = {
            RejectReason.COUNTER_OVERFLOW: verdict.overflow,
            RejectReason.COUNTER_DECREASED: verdict.decreased,
            RejectReason.CPU_IMPLAUSIBLE: verdict.cpu,
        }
        if not any(mask.any() for mask in bad.values()):
            return layout.refused, None
        refused: dict[RejectReason, Sequence[int] | Rows] = dict(layout.refused)
        for reason, mask in bad.items():
            rows = np.flatnonzero(mask)
            if len(rows):
                refused[reason] = rows if layout.kept is None else layout.kept[rows]
        good = np.flatnonzero(~(verdict.overflow | verdict.decreased | verdict.cpu))
        return refused, good


def _finish(
    outcome: Outcome,
    intake: Intake,
    frame: Frame,
    layout: Layout,
    refused: Refused,
    good: Rows | None,
    now: Now,
) -> Outcome:
    enriched = enrich(frame, layout, good, now.wall_ns)
    payload = encode_frame(enriched)
    if len(payload) > MAX_PAYLOAD_BYTES:
        error = MalformedMessageError(
            RejectReason.INVALID_FRAME, f"{len(payload)} bytes once enriched; split the frame"
        )
        return _refuse_whole(outcome, intake, error, rows=frame.rows)
    for reason, rows in refused.items():
        bad = select(frame, rows)
        outcome.rejected[reason] = len(rows)
        outcome.side.append(
            reject_message(intake, reason, _describe(reason, frame, bad), encode_frame(bad))
        )
    msg_id = enriched.msg_id
    if intake.replay:
        # An id of its own, lest the stream take it for the first one; with the place in the
        # stream, since one replay may bring a frame's rows in several messages.
        msg_id = f"{msg_id}:{intake.replay}:{intake.sequence}"
        if intake.retry is not None:
            outcome.put_back = PutBack(frame.host, frame.tick_ms, intake.retry)
    else:
        outcome.lag_ns = now.wall_ns - frame.sampled_at_ns
        outcome.passed_on = (frame.host, frame.tick_ms)
    outcome.enriched = Outgoing(
        metrics_enriched(frame.host), payload, msg_id, replay_headers(intake) or None
    )
    outcome.samples = enriched.rows
    return outcome


def _refuse_whole(
    outcome: Outcome, intake: Intake, error: MalformedMessageError, *, rows: int
) -> Outcome:
    outcome.rejected[error.reason] = rows
    outcome.side.append(reject_message(intake, error.reason, error.detail, intake.data))
    return outcome


def _describe(reason: RejectReason, frame: Frame, bad: Frame) -> str:
    """The first bad row in words, and how many there are."""
    text = f"{bad.rows} of {frame.rows} rows at tick {frame.tick_ms}; first VM "
    text += str(UUID(bytes=bad.vm_ids[:16]))
    if reason is RejectReason.CPU_IMPLAUSIBLE:
        text += f" with cpu_ns {int(counters_of(bad, None)[CPU, 0])}"
    return text
