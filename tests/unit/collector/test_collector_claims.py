"""What hosts claim of themselves, and when a collector may say so."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.claims import Claims, claimed_ms
from collector.messages import Intake, Now, Outcome
from schemas.frames import HEADER_COMPLETE_MS, Frame, RejectReason, encode_frame
from schemas.ids import new_id
from schemas.subjects import METRICS_RAW, metrics_raw
from schemas.units import NS_PER_MS, NS_PER_S
from tests.support.feed import pipeline_of
from tests.support.frames import BASE_MS, HOST, Row, frame, record

VM, OTHER = new_id(), new_id()


def test_a_claim_is_released_once_everything_before_it_is_answered() -> None:
    """Not before, and with all that is known of other hosts."""
    claims = Claims()
    claims.note("a", 1000, raw_sequence=10)
    claims.note("b", 900, raw_sequence=20)
    assert claims.release(9) == {}
    assert claims.release(10) == {"a": 1000}
    assert claims.release(19) == {}
    assert claims.waiting
    assert claims.release(25) == {"a": 1000, "b": 900}
    assert not claims.waiting


def test_of_several_claims_the_newest_that_is_true_counts() -> None:
    """A frame that comes again brings an old one, which says nothing new."""
    claims = Claims()
    for complete_ms, sequence in ((1000, 10), (2000, 20), (3000, 30)):
        claims.note("a", complete_ms, sequence)
    assert claims.release(25) == {"a": 2000}
    claims.note("a", 1000, 10)
    claims.note("a", 2000, 40)
    assert claims.release(25) == {}
    assert claims.release(30) == {"a": 3000}


def test_what_did_not_get_through_is_said_again() -> None:
    """Even if nothing new has come."""
    claims = Claims()
    claims.note("a", 1000, 1)
    assert claims.release(1) == {"a": 1000}
    claims.say_again()
    assert claims.waiting
    assert claims.release(1) == {"a": 1000}


@given(
    st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=200), st.integers(0, 99)
)
def test_claims_are_bounded_and_never_told_too_early(
    noted: list[tuple[int, int]], floor: int
) -> None:
    """Whatever comes, in whatever order; the newest of a long queue is not lost."""
    claims = Claims()
    for complete_ms, sequence in noted:
        claims.note("a", complete_ms, sequence)
    told = claims.release(floor).get("a", -1)
    assert told == -1 or any(c == told and s <= floor for c, s in noted)
    if noted:
        assert claims.release(100).get("a", told) >= noted[-1][0]


@pytest.mark.parametrize(
    "text", ["", "-1", "1.5", "x", "\N{ARABIC-INDIC DIGIT ONE}", "9" * 19, " 1"]
)
def test_a_claim_that_is_no_time_is_none(text: str) -> None:
    """The header is the host's: anything may stand there."""
    assert claimed_ms({HEADER_COMPLETE_MS: text}) is None
    assert claimed_ms({}) is None
    assert claimed_ms({HEADER_COMPLETE_MS: "17"}) == 17


def claim(sent: Frame, complete_ms: int, *, subject: str = metrics_raw(HOST)) -> Outcome:
    pipeline = pipeline_of(record(VM))
    intake = Intake(subject, encode_frame(sent), METRICS_RAW, 1, False, complete_ms=complete_ms)
    return pipeline.process(intake, Now(BASE_MS * NS_PER_MS, NS_PER_S))


def test_a_host_claims_for_itself_and_only_what_lies_behind_it() -> None:
    """Not with a frame on another host's subject, nor beyond the frame's own tick."""
    sent = frame([Row(VM)], run_id=new_id())
    assert claim(sent, BASE_MS).claim == (HOST, BASE_MS)
    assert claim(sent, BASE_MS + 1).claim is None
    assert claim(sent, BASE_MS, subject=metrics_raw("host-b")).claim is None


def test_a_clock_that_is_ahead_is_not_believed() -> None:
    """A tick that is refused for that carries no claim either."""
    ahead = frame([Row(VM)], run_id=new_id(), tick_ms=BASE_MS + 60_000)
    outcome = claim(ahead, BASE_MS)
    assert outcome.rejected == {RejectReason.CLOCK_SKEW: 1}
    assert outcome.claim is None


def test_a_frame_that_waits_claims_nothing_yet() -> None:
    """It comes again."""
    outcome = claim(frame([Row(OTHER)], run_id=new_id()), BASE_MS)
    assert outcome.wait
    assert outcome.claim is None
