"""What came late from lost hosts is gathered, and told in few events."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from collector.adjustments import Adjustments
from collector.losses import FRESH_MS, Losses
from collector.messages import Now, Outcome, PutBack
from runtime.consumer import Delivery
from schemas.hosts import HostLoss
from schemas.replays import Retry
from schemas.units import NS_PER_MS

LOST_MS = 1_760_000_000_000
LOST = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=LOST_MS)
HOLD_NS = 10**9


def lost(*hosts: str) -> Losses:
    """Hosts that are lost since then."""
    losses = Losses()
    for host in hosts:
        loss = HostLoss(host_id=host, reason="burnt", requested_by="ops", declared_at=LOST)
        losses.change(host, loss)
    return losses


def now(monotonic_ns: int = 0, *, after_ms: int = 0) -> Now:
    """So long after the declaration."""
    return Now((LOST_MS + after_ms) * NS_PER_MS, monotonic_ns)


def frame(sequence: int, host: str, tick_ms: int, samples: int = 3) -> tuple[Delivery, Outcome]:
    raw: Any = None
    delivery = Delivery(raw, f"metrics.raw.{host}", b"", {}, "METRICS_RAW", sequence, 1)
    return delivery, Outcome(samples=samples, passed_on=(host, tick_ms))


def test_what_is_older_than_the_loss_is_late() -> None:
    """Not what came from a host that goes on all the same, nor of others, nor without samples."""
    late = Adjustments(lost("h1"), hold_ns=HOLD_NS, most=100)
    assert late.hold(*frame(1, "h1", LOST_MS - 100), now())
    assert not late.hold(*frame(2, "h1", LOST_MS), now())
    assert not late.hold(*frame(3, "h2", LOST_MS - 100), now())
    assert not late.hold(*frame(4, "h1", LOST_MS - 100, samples=0), now())
    replayed = frame(5, "h1", LOST_MS - 100)[0], Outcome(samples=3)
    assert not late.hold(*replayed, now())


def test_what_answers_have_passed_while_a_host_was_lost_is_late() -> None:
    """From after the declaration, too, if it comes long after it was sampled."""
    late = Adjustments(lost("h1"), hold_ns=HOLD_NS, most=100)
    hour = now(after_ms=3_600_000)
    old = LOST_MS + 3_600_000 - FRESH_MS
    assert late.hold(*frame(1, "h1", old - 100), hour)
    assert not late.hold(*frame(2, "h1", old), hour)


def test_what_a_host_that_was_found_still_has_from_before_is_late() -> None:
    """Answers that were complete while it was lost did not wait for it; later ones do."""
    losses = lost("h1")
    losses.change("h1", None)
    losses.removed("h1", LOST + timedelta(hours=1))
    late = Adjustments(losses, hold_ns=HOLD_NS, most=100)
    week = now(after_ms=7 * 86_400_000)
    found = LOST_MS + 3_600_000 - FRESH_MS
    assert late.hold(*frame(1, "h1", found - 100), week)
    assert not late.hold(*frame(2, "h1", found), week)
    (told,) = late.rest()
    assert told.event(LOST).lost_at == LOST


def test_a_moment_s_frames_of_a_host_are_one_event() -> None:
    """Each host's by itself; many are told of before the moment is over."""
    late = Adjustments(lost("h1", "h2"), hold_ns=HOLD_NS, most=4)
    for sequence, tick_ms in ((7, -300), (5, -100), (6, -200)):
        assert late.hold(*frame(sequence, "h1", LOST_MS + tick_ms), now())
    for sequence in range(10, 14):
        assert late.hold(*frame(sequence, "h2", LOST_MS - 100 * sequence), now(HOLD_NS // 2))
    (many,) = late.due(HOLD_NS - 1)
    assert (many.event(LOST).host_id, many.event(LOST).frames) == ("h2", 4)
    (few,) = late.due(HOLD_NS)
    event = few.event(LOST + timedelta(seconds=9))
    assert (event.frames, event.rows, event.lost_at) == (3, 9, LOST)
    assert event.first_tick == LOST - timedelta(milliseconds=300)
    assert event.last_tick == LOST - timedelta(milliseconds=100)
    assert sorted(d.sequence for d in few.deliveries) == [5, 6, 7]
    assert late.due(10 * HOLD_NS) == late.rest() == []


def put_back(sequence: int, tick_ms: int, retry: Retry) -> tuple[Delivery, Outcome]:
    delivery, _ = frame(sequence, "h1", tick_ms)
    return delivery, Outcome(samples=2, put_back=PutBack("h1", tick_ms, retry))


def test_what_is_put_back_is_told_with_why_apart_from_what_is_late() -> None:
    """Each act by itself, of any host; not what is so fresh that nobody has passed it."""
    late = Adjustments(lost("h1"), hold_ns=HOLD_NS, most=100)
    first, second = Retry("r1", "its record came late", False), Retry("r2", "again", True)
    hour = now(after_ms=3_600_000)
    late.hold(*frame(1, "h1", LOST_MS - 100), hour)
    for sequence, retry in ((2, first), (3, first), (4, second)):
        assert late.hold(*put_back(sequence, LOST_MS + 1000 * sequence, retry), hour)
    assert not late.hold(*put_back(5, LOST_MS + 3_600_000 - FRESH_MS, first), hour)
    at = LOST + timedelta(hours=1)
    told = [one.event(at) for one in late.rest()]
    assert [(e.cause, e.replay_id, e.reason, e.uncertain, e.frames, e.rows) for e in told] == [
        ("late", "", "", False, 1, 3),
        ("retry", "r1", "its record came late", False, 2, 4),
        ("retry", "r2", "again", True, 1, 2),
    ]
    assert [e.lost_at for e in told] == [LOST, at, at]
    assert len({e.event_id for e in told}) == 3


def test_the_same_frames_are_the_same_event() -> None:
    """So that telling it twice stores it once."""
    ids = set()
    for order in ((1, 2, 3), (3, 1, 2), (1, 2)):
        late = Adjustments(lost("h1"), hold_ns=HOLD_NS, most=100)
        for sequence in order:
            late.hold(*frame(sequence, "h1", LOST_MS - 100 * sequence), now())
        (one,) = late.rest()
        ids.add(one.event(LOST).event_id)
    assert len(ids) == 2
