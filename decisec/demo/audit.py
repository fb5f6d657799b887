"""An audit of the raw stream itself, apart from what collector and batcher say of it.

Reads every frame from the start of `METRICS_RAW`: which ticks each incarnation should have
and has, which sequence numbers are missing, and how punctual the sampler was.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID

from decisec.live.samples import column, vm_ids
from runtime.bus import Bus
from runtime.reading import count_messages, read_stream
from schemas.events import VmStopped, decode_vm_event
from schemas.frames import Frame, SampleFlag, decode_frame
from schemas.subjects import METRICS_RAW, METRICS_REJECTED, VM_EVENTS
from schemas.units import NS_PER_MS, TICK_MS
from schemas.vms import METERS

Incarnation = tuple[UUID, int]


class Quantiles(NamedTuple):
    """Order statistics of what was measured, in ms."""

    p50: float
    p99: float
    max: float


def quantiles(values: Iterable[float]) -> Quantiles:
    """Nearest-rank quantiles (no value is invented); zeros if there are no values."""
    ordered = sorted(values)
    if not ordered:
        return Quantiles(0.0, 0.0, 0.0)
    last = len(ordered) - 1
    return Quantiles(ordered[last // 2], ordered[last * 99 // 100], ordered[-1])


@dataclass(slots=True)
class Life:
    """What the frames say of one incarnation."""

    first_tick_ms: int | None = None
    final_tick_ms: int | None = None
    ticks_ms: set[int] = field(default_factory=set)

    @property
    def ticks_expected(self) -> int:
        """Ticks from baseline to final sample, both included; what was seen, if one is missing."""
        if self.first_tick_ms is None or self.final_tick_ms is None:
            return len(self.ticks_ms)
        return (self.final_tick_ms - self.first_tick_ms) // TICK_MS + 1


@dataclass(slots=True)
class RawAudit:
    """What the raw frames say. Pure: frames are handed in, in any order, duplicates too."""

    lives: dict[Incarnation, Life] = field(default_factory=lambda: defaultdict(Life))
    late_ms: list[float] = field(default_factory=list)
    ticks_missed: int = 0
    frames: int = 0
    _seqs: dict[UUID, set[int]] = field(default_factory=lambda: defaultdict(set))

    def take(self, frame: Frame) -> None:
        """Take one frame."""
        seqs = self._seqs[frame.run_id]
        if frame.seq in seqs:
            return
        seqs.add(frame.seq)
        self.frames += 1
        if not frame.rows:
            return
        self.late_ms.append(frame.late_ns / NS_PER_MS)
        self.ticks_missed += frame.missed_ticks
        for vm_id, incarnation, flags in zip(
            vm_ids(frame), column(frame, "incarnations"), column(frame, "flags"), strict=True
        ):
            life = self.lives[vm_id, incarnation]
            life.ticks_ms.add(frame.tick_ms)
            if flags & SampleFlag.BASELINE:
                life.first_tick_ms = frame.tick_ms
            if flags & SampleFlag.FINAL:
                life.final_tick_ms = frame.tick_ms

    @property
    def seq_missing(self) -> int:
        """Holes in the sequence numbers, over all runs; each run begins at 0."""
        return sum(max(seqs) + 1 - len(seqs) for seqs in self._seqs.values())

    @property
    def ticks_expected(self) -> int:
        """Ticks of all incarnations."""
        return sum(life.ticks_expected for life in self.lives.values())

    @property
    def incomplete(self) -> list[Incarnation]:
        """Incarnations without a baseline or without a final sample."""
        return [
            key
            for key, life in self.lives.items()
            if life.first_tick_ms is None or life.final_tick_ms is None
        ]


async def audit_raw(bus: Bus) -> RawAudit:
    """Read the whole raw stream.

    Raises:
        TransientError: NATS did not answer.
        MalformedMessageError: A frame of ours cannot be read.
    """
    audit = RawAudit()
    for message in await read_stream(bus, METRICS_RAW):
        audit.take(decode_frame(message.data))
    return audit


async def final_counters(bus: Bus) -> dict[UUID, dict[str, int]]:
    """Final counters of each VM by its own agent's word, summed over its incarnations.

    Raises:
        TransientError: NATS did not answer.
    """
    ends: dict[Incarnation, VmStopped] = {}
    for message in await read_stream(bus, VM_EVENTS):
        event = decode_vm_event(message.data)
        if isinstance(event, VmStopped):
            ends[event.vm_id, event.incarnation] = event
    sums: dict[UUID, dict[str, int]] = defaultdict(lambda: dict.fromkeys(METERS, 0))
    for (vm_id, _), event in ends.items():
        for meter in METERS:
            sums[vm_id][meter] += getattr(event.final_counters, meter)
    return dict(sums)


async def rejected(bus: Bus) -> int:
    """Messages that collector and batcher have set aside.

    Raises:
        TransientError: NATS did not answer.
    """
    return await count_messages(bus, METRICS_REJECTED)
