"""What came late from lost hosts is gathered, and told in few events."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from collector.adjustments import Adjustments
from collector.messages import Outcome
from runtime.consumer import Delivery
from schemas.hosts import HostLoss

LOST_MS = 1_760_000_000_000
LOST = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=LOST_MS)
HOLD_NS = 10**9


def loss(host: str = "h1") -> HostLoss:
    return HostLoss(host_id=host, reason="burnt", requested_by="ops", declared_at=LOST)


def frame(sequence: int, host: str, tick_ms: int, samples: int = 3) -> tuple[Delivery, Outcome]:
    raw: Any = None
    delivery = Delivery(raw, f"metrics.raw.{host}", b"", {}, "METRICS_RAW", sequence, 1)
    return delivery, Outcome(samples=samples, passed_on=(host, tick_ms))


def test_only_what_is_older_than_the_loss_is_late() -> None:
    """Not what came from a host that goes on all the same, nor of others, nor without samples."""
    losses = {"h1": loss()}
    late = Adjustments(losses, hold_ns=HOLD_NS, most=100)
    assert late.hold(*frame(1, "h1", LOST_MS - 100), 0)
    assert not late.hold(*frame(2, "h1", LOST_MS), 0)
    assert not late.hold(*frame(3, "h2", LOST_MS - 100), 0)
    assert not late.hold(*frame(4, "h1", LOST_MS - 100, samples=0), 0)
    replayed = frame(5, "h1", LOST_MS - 100)[0], Outcome(samples=3)
    assert not late.hold(*replayed, 0)
    losses.clear()
    assert not late.hold(*frame(6, "h1", LOST_MS - 100), 0)


def test_a_moment_s_frames_of_a_host_are_one_event() -> None:
    """Each host's by itself; many are told of before the moment is over."""
    late = Adjustments({"h1": loss(), "h2": loss("h2")}, hold_ns=HOLD_NS, most=4)
    for sequence, tick_ms in ((7, -300), (5, -100), (6, -200)):
        assert late.hold(*frame(sequence, "h1", LOST_MS + tick_ms), 0)
    for sequence in range(10, 14):
        assert late.hold(*frame(sequence, "h2", LOST_MS - 100 * sequence), HOLD_NS // 2)
    (many,) = late.due(HOLD_NS - 1)
    assert (many.event(LOST).host_id, many.event(LOST).frames) == ("h2", 4)
    (few,) = late.due(HOLD_NS)
    event = few.event(LOST + timedelta(seconds=9))
    assert (event.frames, event.rows, event.lost_at) == (3, 9, LOST)
    assert event.first_tick == LOST - timedelta(milliseconds=300)
    assert event.last_tick == LOST - timedelta(milliseconds=100)
    assert sorted(d.sequence for d in few.deliveries) == [5, 6, 7]
    assert late.due(10 * HOLD_NS) == late.rest() == []


def test_the_same_frames_are_the_same_event() -> None:
    """So that telling it twice stores it once."""
    ids = set()
    for order in ((1, 2, 3), (3, 1, 2), (1, 2)):
        late = Adjustments({"h1": loss()}, hold_ns=HOLD_NS, most=100)
        for sequence in order:
            late.hold(*frame(sequence, "h1", LOST_MS - 100 * sequence), 0)
        (one,) = late.rest()
        ids.add(one.event(LOST).event_id)
    assert len(ids) == 2
