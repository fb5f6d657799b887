"""What the pipeline makes of frames that an operator sends once more."""

from __future__ import annotations

import pytest

from collector.messages import Intake, Now
from schemas.events import GapClosed, GapOpened, HostHeard, HostSilent, decode_host_event
from schemas.frames import HEADER_REASON, HEADER_REPLAY, RejectReason, encode_frame, replay_of
from schemas.ids import new_id
from schemas.replays import Retry
from schemas.subjects import METRICS_RAW, metrics_raw
from schemas.units import NS_PER_S
from tests.support.feed import Feed, enriched_of, uptime
from tests.support.frames import BASE_MS, HOST, Row, frame, record

RUN = new_id()
VM, OTHER = new_id(), new_id()
REPLAY = str(new_id())


def test_a_replayed_frame_leaves_under_an_id_of_its_own() -> None:
    """With the header, without a lag, and the same rows; each part of a frame has its own id."""
    feed = Feed(record(VM), record(OTHER))
    first = feed(frame([Row(VM, uptime(5))], run_id=RUN))
    again = feed(frame([Row(VM, uptime(5))], run_id=RUN), at_ms=60_000, replay=REPLAY)
    part = feed(frame([Row(OTHER, uptime(5))], run_id=RUN), at_ms=60_000, replay=REPLAY)
    assert (first.lag_ns, again.lag_ns) == (0, None)
    assert enriched_of(again).vm_ids == enriched_of(first).vm_ids
    assert first.enriched is not None
    assert again.enriched is not None
    assert part.enriched is not None
    assert not first.enriched.headers
    assert again.enriched.headers == {HEADER_REPLAY: REPLAY}
    assert len({o.enriched.msg_id for o in (first, again, part) if o.enriched}) == 3
    assert again.enriched.msg_id.startswith(f"{first.enriched.msg_id}:{REPLAY}")


def test_a_delivery_of_a_replayed_frame_has_the_same_id_each_time() -> None:
    """So that a collector that is killed in between stores it once."""
    feed = Feed(record(VM))
    first = feed(frame([Row(VM)], run_id=RUN), replay=REPLAY)
    feed.sequence -= 1
    again = feed(frame([Row(VM)], run_id=RUN), replay=REPLAY, redelivered=True)
    assert first.enriched is not None
    assert again.enriched is not None
    assert first.enriched.msg_id == again.enriched.msg_id


def test_a_frame_that_is_put_back_says_so_if_it_passes() -> None:
    """What a replay brings, and what is refused again, puts nothing back."""
    feed = Feed(record(VM))
    retry = Retry(REPLAY, "its record came late", False)
    whole = frame([Row(VM, uptime(5)), Row(OTHER, uptime(5))], run_id=RUN)
    assert feed(whole, replay=REPLAY, retry=retry).wait
    passed = feed(whole, at_ms=60_000, replay=REPLAY, retry=retry)
    assert passed.put_back == (HOST, BASE_MS, retry)
    assert (passed.samples, passed.passed_on) == (1, None)
    assert passed.enriched is not None
    assert passed.enriched.headers == {HEADER_REPLAY: REPLAY}
    refused = feed(b"rubbish", at_ms=60_000, replay=REPLAY, retry=retry)
    assert refused.put_back is None
    replayed = feed(whole, at_ms=60_000, replay=REPLAY)
    assert replayed.put_back is None


def test_a_replay_neither_revives_a_host_nor_opens_a_gap() -> None:
    """A host is as silent as before; numbers far apart are no hole."""
    feed = Feed(record(VM))
    feed(frame([Row(VM, uptime(0))], run_id=RUN))
    late = Now(BASE_MS * 10**6 + 11 * NS_PER_S, 12 * NS_PER_S)
    told = [decode_host_event(event.payload) for event in feed.pipeline.watch(late)]
    assert HostSilent in map(type, told)
    for seq in (0, 7):
        outcome = feed(
            frame([Row(VM, uptime(100 * seq))], run_id=RUN, seq=seq), at_ms=12_000, replay=REPLAY
        )
        assert outcome.side == []
    assert not feed.pipeline.watch(Now(late.wall_ns, late.monotonic_ns + NS_PER_S))
    heard = feed(frame([Row(VM, uptime(100))], run_id=RUN, seq=1), at_ms=13_000)
    assert [type(decode_host_event(m.payload)) for m in heard.side] == [HostHeard]


def test_a_replay_of_an_unknown_host_makes_it_none_that_could_be_silent() -> None:
    """A host that is gone for good stays gone."""
    feed = Feed(record(VM))
    feed(frame([Row(VM)], run_id=RUN), replay=REPLAY)
    assert feed.pipeline.silence.hosts == 0
    assert not feed.pipeline.watch(Now(BASE_MS * 10**6 + 60 * NS_PER_S, 61 * NS_PER_S))


def test_a_retried_frame_fills_the_hole_that_its_refusal_left() -> None:
    """A frame that could not be read at first has come after all."""
    feed = Feed(record(VM))
    frames = [frame([Row(VM, uptime(100 * n))], run_id=RUN, seq=n) for n in range(3)]
    feed(frames[0])
    opened = feed(frames[2], at_ms=200)
    closed = feed(frames[1], at_ms=300, replay=REPLAY)
    kinds = [type(decode_host_event(o.side[0].payload)) for o in (opened, closed)]
    assert kinds == [GapOpened, GapClosed]


def test_what_is_refused_of_a_replay_says_so() -> None:
    """The reject has the header as well."""
    outcome = Feed()(frame([Row(VM)], run_id=RUN, host="other"), replay=REPLAY)
    (reject,) = outcome.side
    assert reject.headers is not None
    assert reject.headers[HEADER_REASON] == RejectReason.WRONG_HOST
    assert reject.headers[HEADER_REPLAY] == REPLAY


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({}, ""),
        ({HEADER_REPLAY: REPLAY}, REPLAY),
        ({HEADER_REPLAY: ""}, ""),
        ({HEADER_REPLAY: "a b\r\nc"}, ""),
        ({HEADER_REPLAY: "x" * 64}, ""),
    ],
    ids=["no-header", "an-id", "empty", "two-lines", "too-long"],
)
def test_a_header_that_is_no_id_is_none(headers: dict[str, str], found: str) -> None:
    """Whatever a host writes there, it goes into message ids and headers."""
    assert replay_of(headers) == found


def test_live_frames_pass_their_checks_amid_a_replay() -> None:
    """Old frames of another agent run between them change nothing."""
    feed = Feed(record(VM))
    old, new = new_id(), new_id()
    for n in range(5):
        feed(frame([Row(VM, uptime(100 * n, cpu_ns=n))], run_id=old, seq=n))
    for n in range(5, 15):
        live = frame(
            [Row(VM, uptime(100 * n, cpu_ns=n))], run_id=new, seq=n - 5, tick_ms=BASE_MS + 100 * n
        )
        past = frame([Row(VM, uptime(100 * (n % 5), cpu_ns=n % 5))], run_id=old, seq=n % 5)
        for sent, replay in ((live, ""), (past, REPLAY)):
            outcome = feed(sent, at_ms=100 * n, replay=replay)
            assert outcome.rejected == {}
            assert outcome.samples == 1


def test_hosts_of_replays_are_not_remembered_for_ever() -> None:
    """There may be many that are gone for good; one that is heard is remembered."""
    feed = Feed(record(VM))
    feed(frame([Row(VM)], run_id=RUN))
    for number in range(600):
        host = f"gone-{number}"
        feed(frame([], run_id=RUN, host=host), subject=metrics_raw(host), replay=REPLAY)
        feed.pipeline.watch(Now(BASE_MS * 10**6, NS_PER_S))
    assert len(feed.pipeline._hosts) <= 258
    assert HOST in feed.pipeline._hosts


def test_a_replay_claims_nothing() -> None:
    """What its host said of itself held when it sent the frame first."""
    pipeline = Feed(record(VM)).pipeline
    data = encode_frame(frame([Row(VM)], run_id=RUN))
    for replay, claim in (("", (HOST, BASE_MS)), (REPLAY, None)):
        intake = Intake(metrics_raw(HOST), data, METRICS_RAW, 1, False, replay, BASE_MS)
        assert pipeline.process(intake, Now(BASE_MS * 10**6, NS_PER_S)).claim == claim
