"""What frames say of one VM, and what must be true of it."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from schemas.frames import Frame, SampleFlag
from schemas.vms import METERS, Counters


@dataclass(frozen=True)
class Sample:
    """One VM's row in a frame."""

    tick_ms: int
    incarnation: int
    state: int
    flags: int
    counters: Counters


def samples_of(frames: list[Frame], vm_id: UUID) -> list[Sample]:
    """All samples of a VM, by tick."""
    found = []
    for frame in frames:
        for row in range(frame.rows):
            if frame.vm_ids[16 * row : 16 * row + 16] != vm_id.bytes:
                continue
            values = {m: array("Q", getattr(frame, m))[row] for m in METERS}
            found.append(
                Sample(
                    frame.tick_ms,
                    array("I", frame.incarnations)[row],
                    frame.states[row],
                    frame.flags[row],
                    Counters(**values),
                )
            )
    return sorted(found, key=lambda sample: sample.tick_ms)


def has_final(vm_id: UUID, incarnation: int = 1) -> Callable[[list[Frame]], bool]:
    """A condition on frames: the incarnation's final sample is among them."""

    def condition(frames: list[Frame]) -> bool:
        return any(
            s.incarnation == incarnation and s.flags & SampleFlag.FINAL
            for s in samples_of(frames, vm_id)
        )

    return condition


def assert_exact(samples: list[Sample]) -> None:
    """An incarnation's samples: baseline, never back, final; every tick at most once."""
    ticks = [s.tick_ms for s in samples]
    assert len(set(ticks)) == len(ticks)
    assert all(tick % 100 == 0 for tick in ticks)
    assert samples[0].flags & SampleFlag.BASELINE
    assert samples[0].counters == Counters()
    assert samples[-1].flags & SampleFlag.FINAL
    assert sum(bool(s.flags & SampleFlag.FINAL) for s in samples) == 1
    assert sum(bool(s.flags & SampleFlag.BASELINE) for s in samples) == 1
    for meter in METERS:
        series = [getattr(s.counters, meter) for s in samples]
        assert series == sorted(series), meter


def assert_no_hole(frames: list[Frame]) -> None:
    """Every run's frames are all there, once."""
    by_run: dict[UUID, list[int]] = {}
    for frame in frames:
        by_run.setdefault(frame.run_id, []).append(frame.seq)
    for seqs in by_run.values():
        assert sorted(seqs) == list(range(max(seqs) + 1))
