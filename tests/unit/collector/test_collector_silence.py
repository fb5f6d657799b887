"""Silence: each thing is said once, and only of the host."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from collector.silence import Silence, SilenceLimits
from schemas.events import HostEvent, HostHeard, HostSilent, HostSuspected, event_type
from schemas.units import NS_PER_MS, NS_PER_S

LIMITS = SilenceLimits(1 * NS_PER_S, 10 * NS_PER_S, 100 * NS_PER_S)
START = datetime(2025, 1, 1, tzinfo=UTC)


def at(ms: int) -> tuple[int, datetime]:
    return ms * NS_PER_MS, START + timedelta(milliseconds=ms)


def test_a_host_is_suspected_then_silent_then_heard() -> None:
    """At one second, at ten, and when it is back, with the length of the silence."""
    silence = Silence(LIMITS)
    assert silence.heard("h1", *at(0)) == []
    assert silence.watch(*at(999)) == []
    (suspected,) = silence.watch(*at(1000))
    assert isinstance(suspected, HostSuspected)
    assert silence.watch(*at(9999)) == []
    (silent,) = silence.watch(*at(10_000))
    assert isinstance(silent, HostSilent)
    assert silence.watch(*at(50_000)) == []
    (heard,) = silence.heard("h1", *at(60_000))
    assert isinstance(heard, HostHeard)
    assert heard.silent_ms == 60_000
    assert silence.heard("h1", *at(60_100)) == []


def test_a_deaf_collector_suspects_nobody() -> None:
    """The time without a connection does not count against a host, suspected or not."""
    silence = Silence(LIMITS)
    silence.heard("quiet", *at(0))
    silence.watch(*at(1500))
    silence.heard("busy", *at(1500))
    silence.deafened(at(30_000)[0])
    assert silence.watch(*at(30_900)) == []
    assert [type(event) for event in silence.watch(*at(31_000))] == [HostSuspected]
    assert {e.host_id for e in silence.watch(*at(39_100))} == {"quiet"}


def test_how_long_a_host_is_quiet_does_not_depend_on_whose_fault_it_is() -> None:
    """Other than what is told of it: a deaf collector still knows when the last frame came."""
    silence = Silence(LIMITS)
    assert silence.quiet_ns("h1", at(0)[0]) is None
    silence.heard("h1", *at(0))
    silence.deafened(at(30_000)[0])
    assert silence.quiet_ns("h1", at(31_000)[0]) == at(31_000)[0]
    silence.heard("h1", *at(32_000))
    assert silence.quiet_ns("h1", at(33_000)[0]) == at(1000)[0]


def test_a_host_long_silent_is_dropped() -> None:
    """It is named once, so that everything else about it can go too."""
    silence = Silence(LIMITS)
    silence.heard("h1", *at(0))
    silence.heard("h2", *at(50_000))
    assert silence.forget(at(100_000)[0]) == ["h1"]
    assert silence.forget(at(100_000)[0]) == []
    assert silence.hosts == 1


@given(st.lists(st.tuples(st.integers(0, 15_000), st.booleans()), max_size=40))
def test_events_alternate(steps: list[tuple[int, bool]]) -> None:
    """Whatever comes when: suspected before silent, each once per silence, heard at its end."""
    silence = Silence(LIMITS)
    silence.heard("h1", *at(0))
    now, told = 0, list[HostEvent]()
    for wait_ms, frame in steps:
        now += wait_ms
        told += silence.heard("h1", *at(now)) if frame else silence.watch(*at(now))
    may_follow = {
        "": {"host_suspected"},
        "host_suspected": {"host_silent", "host_heard"},
        "host_silent": {"host_heard"},
        "host_heard": {"host_suspected"},
    }
    last = ""
    for event in told:
        assert event_type(event) in may_follow[last]
        last = event_type(event)
    assert len({event.event_id for event in told}) == len(told)


def test_nothing_is_told_of_a_host_that_is_told_of_elsewhere() -> None:
    """Its frames go another way since the stream was parted anew; it is forgotten all the same."""
    silence = Silence(LIMITS, lambda host_id: host_id == "h1")
    for host in ("h1", "h2"):
        assert silence.heard(host, *at(0)) == []
    assert [event.host_id for event in silence.watch(*at(20_000))] == ["h1", "h1"]
    assert silence.heard("h2", *at(20_000)) == []
    assert silence.forget(at(200_000)[0]) == ["h1", "h2"]
