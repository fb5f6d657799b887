"""Holes in frame numbers: found, closed, never invented, and bounded."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from collector.gaps import MAX_GAPS_PER_RUN, MAX_PIECES_PER_GAP, MAX_RUNS_PER_HOST, Gaps
from collector.pipeline import Pipeline, Rules
from schemas.events import GapClosed, GapOpened
from schemas.ids import new_id
from tests.support.feed import Feed
from tests.support.frames import frame

AT = datetime(2025, 1, 1, tzinfo=UTC)
RUN = new_id()


def observe(gaps: Gaps, seq: int, *, redelivered: bool = False) -> list[GapOpened | GapClosed]:
    return gaps.observe("h1", RUN, seq, redelivered=redelivered, at=AT)


def test_a_run_is_followed_from_the_first_frame_seen() -> None:
    """A collector that starts in the middle reports nothing that came before it."""
    gaps = Gaps()
    assert observe(gaps, 500) == []
    assert observe(gaps, 499) == []
    assert observe(gaps, 501) == []
    assert (gaps.missing, gaps.opened) == (0, 0)


def test_a_gap_closes_when_its_last_frame_has_come() -> None:
    """Opened with its bounds, counted down, closed with the same bounds."""
    gaps = Gaps()
    observe(gaps, 0)
    (opened,) = observe(gaps, 4)
    assert isinstance(opened, GapOpened)
    assert (opened.seq_first, opened.seq_last, gaps.missing) == (1, 3, 3)
    assert observe(gaps, 2) == []
    assert observe(gaps, 2) == []
    assert observe(gaps, 3) == []
    (closed,) = observe(gaps, 1, redelivered=True)
    assert isinstance(closed, GapClosed)
    assert (closed.seq_first, closed.seq_last, gaps.missing) == (1, 3, 0)


def test_a_redelivered_frame_opens_no_gap() -> None:
    """After a restart only unanswered frames come again; their neighbours were answered."""
    gaps = Gaps()
    assert observe(gaps, 50, redelivered=True) == []
    assert observe(gaps, 52, redelivered=True) == []
    assert observe(gaps, 60) == []
    assert observe(gaps, 63, redelivered=True) == []
    assert observe(gaps, 61) == []
    assert gaps.opened == 0


def test_frames_that_went_elsewhere_meanwhile_are_no_gap() -> None:
    """A stream parted anew twice: what is left of a host is followed, what comes back later not."""
    feed = Feed()
    feed.pipeline = Pipeline(Rules(), tells_of=lambda _: False, others_until=3)
    for seq in (10, 11, 14):
        feed(frame([], run_id=RUN, seq=seq))
    gaps = feed.pipeline.gaps
    assert (gaps.missing, gaps.opened) == (2, 1)
    feed(frame([], run_id=RUN, seq=90))
    assert (gaps.missing, gaps.opened) == (2, 1)
    feed(frame([], run_id=RUN, seq=12))
    assert (gaps.missing, gaps.opened) == (1, 1)


def test_what_is_left_from_before_a_stream_was_parted_anew_is_not_followed() -> None:
    """Frames between what is left here and what comes since may have gone to a third partition."""
    feed = Feed()
    feed.pipeline = Pipeline(Rules(), mixed_until=2)
    for seq in (10, 11, 40, 41):
        feed(frame([], run_id=RUN, seq=seq))
    assert feed.pipeline.gaps.opened == 0
    feed(frame([], run_id=RUN, seq=43))
    assert (feed.pipeline.gaps.missing, feed.pipeline.gaps.opened) == (1, 1)


def test_telling_a_gap_twice_is_telling_it_once() -> None:
    """Two collectors that see the same hole give it the same id; other holes get others."""
    told = []
    for skipped_to in (3, 3, 4):
        gaps = Gaps()
        observe(gaps, 0)
        told.append(observe(gaps, skipped_to)[0].event_id)
    assert told[0] == told[1] != told[2]


def test_memory_is_bounded_and_what_is_missing_stays_counted() -> None:
    """Many runs, many gaps and a shredded gap: old ones are let go, their frames stay missing."""
    gaps = Gaps()
    for _ in range(3 * MAX_RUNS_PER_HOST):
        gaps.observe("h1", new_id(), 0, redelivered=False, at=AT)
    assert len(gaps._hosts["h1"]) == MAX_RUNS_PER_HOST
    for seq in range(0, 4 * MAX_GAPS_PER_RUN, 2):
        observe(gaps, seq)
    run = gaps._hosts["h1"][RUN]
    assert len(run.gaps) == MAX_GAPS_PER_RUN
    assert gaps.missing == 2 * MAX_GAPS_PER_RUN - 1
    before, start = gaps.missing, run.next_seq
    observe(gaps, start + 10 * MAX_PIECES_PER_GAP)
    for seq in range(start + 1, start + 9 * MAX_PIECES_PER_GAP, 2):
        observe(gaps, seq)
    assert all(len(gap.missing) <= MAX_PIECES_PER_GAP for gap in run.gaps)
    assert gaps.missing > before
    gaps.forget("h1")
    assert not gaps._hosts


@given(st.lists(st.integers(1, 40), max_size=60))
def test_missing_is_what_was_skipped_and_has_not_come(order: list[int]) -> None:
    """In any order, with repeats: the count agrees with a set, and events open before closing."""
    gaps = Gaps()
    observe(gaps, 0)
    came, open_gaps = {0}, set()
    for seq in order:
        for event in observe(gaps, seq):
            bounds = (event.seq_first, event.seq_last)
            if isinstance(event, GapOpened):
                assert bounds not in open_gaps
                open_gaps.add(bounds)
            else:
                open_gaps.remove(bounds)
        came.add(seq)
        missing = set(range(max(came) + 1)) - came
        assert gaps.missing == len(missing)
        assert open_gaps == {
            (first, last)
            for first, last in open_gaps
            if missing.intersection(range(first, last + 1))
        }
        assert missing <= {s for first, last in open_gaps for s in range(first, last + 1)}
