"""How long hosts were away, as one collector has seen it, and which hosts are expected at all."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.absence import Absences
from collector.expected import Expected
from collector.losses import Losses
from collector.settings import CollectorSettings
from schemas.events import HostFound, HostLost
from schemas.hosts import HostLoss
from schemas.ids import new_id
from tests.support.frames import record

NOW = datetime(2026, 1, 1, tzinfo=UTC)
VM = new_id()


def test_an_absence_counts_from_the_first_look_at_the_same_frame() -> None:
    """From the answer of that one to the question of this one; a new frame begins anew."""
    absences = Absences()
    assert absences.look("h1", 5, asked_ns=0, answered_ns=10) == 0
    assert absences.look("h1", 5, asked_ns=100, answered_ns=120) == 90
    assert absences.look("h2", 5, asked_ns=120, answered_ns=130) == 0
    assert absences.look("h1", 5, asked_ns=200, answered_ns=210) == 190
    assert absences.look("h1", 6, asked_ns=300, answered_ns=310) == 0
    assert absences.look("h1", 6, asked_ns=400, answered_ns=410) == 90


def test_a_host_that_never_sent_a_frame_can_be_away() -> None:
    """Nothing is found as well as something."""
    absences = Absences()
    absences.look("h1", 0, asked_ns=0, answered_ns=0)
    assert absences.look("h1", 0, asked_ns=100, answered_ns=100) == 100


@pytest.mark.parametrize("how", ["heard", "interrupted", "kept"])
def test_whatever_shows_that_it_may_have_been_heard_begins_anew(how: str) -> None:
    """A heartbeat, a break of the connection, or another collector's turn at it."""
    absences = Absences()
    absences.look("h1", 5, asked_ns=0, answered_ns=0)
    if how == "heard":
        absences.heard("h1")
    elif how == "interrupted":
        absences.interrupted()
    else:
        absences.keep({"h2"})
    assert absences.look("h1", 5, asked_ns=100, answered_ns=100) == 0


_STEPS = st.lists(
    st.tuples(st.integers(1, 100), st.sampled_from(["look", "frame", "break"])), max_size=60
)


@given(_STEPS)
def test_an_absence_is_never_longer_than_what_was_watched_without_a_break(
    steps: list[tuple[int, str]],
) -> None:
    """Nor than the time since the last frame."""
    absences = Absences()
    now, since, sequence = 0, None, 0
    for passed, what in steps:
        now += passed
        if what == "frame":
            sequence += 1
            since = None
        elif what == "break":
            absences.interrupted()
            since = None
        else:
            silent = absences.look("h1", sequence, asked_ns=now, answered_ns=now)
            since = now if since is None else since
            assert silent == now - since


def test_hosts_are_expected_as_the_records_of_vms_name_them() -> None:
    """Former ones too; of a host all of whose VMs are gone, until when there was one."""
    expected = Expected()
    other = new_id()
    first = record(VM, host="h1")
    expected.change("acme.vm", first)
    expected.change("acme.other", record(other, host="h1"))
    assert (set(expected.hosts), expected.end("h1")) == ({"h1"}, None)
    moved = first.moved("h2", last_incarnation=1, left_at=NOW)
    expected.change("acme.vm", moved)
    assert set(expected.hosts) == {"h1", "h2"}
    assert expected.end("h1") is None
    gone = msgspec.structs.replace(record(other, host="h1"), deleted_at=NOW + timedelta(seconds=9))
    expected.change("acme.other", gone)
    assert expected.end("h1") == NOW + timedelta(seconds=9)
    assert expected.end("h2") is None
    expected.change("acme.other", None)
    assert expected.end("h1") == NOW
    expected.change("acme.vm", moved.moved("h1", last_incarnation=2, left_at=None))
    assert expected.end("h1") is None
    assert expected.end("h2") is None
    expected.change("acme.vm", None)
    assert not expected.hosts


def loss(host: str = "h1", **more: Any) -> HostLoss:
    return HostLoss(
        host_id=host, reason="burnt", requested_by="ops", declared_at=NOW, automatic=True, **more
    )


def test_the_same_is_told_of_hosts_by_whoever_tells_it() -> None:
    """Lost as long as that stands; found for a day after that."""
    told = []
    for _ in range(2):
        losses = Losses()
        losses.change("h1", loss())
        losses.removed("h2", NOW)
        told.append(losses.facts(NOW + timedelta(hours=23)))
    assert told[0] == told[1]
    lost, found = told[0]
    assert isinstance(lost, HostLost)
    assert isinstance(found, HostFound)
    assert (lost.host_id, lost.at, lost.reason, lost.automatic) == ("h1", NOW, "burnt", True)
    assert (found.host_id, found.at) == ("h2", NOW)
    assert [one.host_id for one in losses.facts(NOW + timedelta(days=1))] == ["h1"]
    losses.change("h1", None)
    losses.removed("h1", NOW + timedelta(hours=1))
    losses.change("h2", loss("h2"))
    assert [(type(one), one.host_id) for one in losses.facts(NOW)] == [
        (HostLost, "h2"),
        (HostFound, "h1"),
    ]


def test_a_host_that_never_was_lost_has_nothing_that_was_passed() -> None:
    """Whatever is said of others."""
    losses = Losses()
    losses.change("h1", loss())
    losses.change("h3", None)
    assert losses.passed("h2", 0) is None
    assert losses.passed("h3", 0) is None


@pytest.mark.parametrize(("after_s", "good"), [(0, True), (10, False), (10.5, True), (-1, False)])
def test_a_host_that_is_merely_silent_is_never_lost(after_s: float, good: bool) -> None:
    """Nothing between never and longer than it takes to call a host silent."""
    values = {"host_lost_after_s": after_s}
    if good:
        assert msgspec.convert(values, CollectorSettings).host_lost_after_s == after_s
    else:
        with pytest.raises(msgspec.ValidationError, match="host_lost_after_s"):
            msgspec.convert(values, CollectorSettings)
