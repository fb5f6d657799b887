"""What is missing after any series of host events."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from decisec.cli.gaps import gaps_table, row_of
from decisec.streams.gaps import Adjustment, Gap, Ledger, Loss, Silence
from schemas.events import (
    GapClosed,
    GapOpened,
    HostDrained,
    HostFound,
    HostHeard,
    HostLost,
    HostSilent,
    HostSuspected,
    MeteringAdjusted,
)
from schemas.ids import new_id

RUN = new_id()
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def event(kind: Any, second: int, host: str = "h1", **more: Any) -> Any:
    return kind(event_id=new_id(), at=NOW + timedelta(seconds=second), host_id=host, **more)


def hole(kind: Any, second: int, first: int, last: int) -> Any:
    return event(kind, second, run_id=RUN, seq_first=first, seq_last=last)


def test_a_gap_is_open_until_it_is_closed() -> None:
    """Said twice it is one; another one is another; closed ones are not in the open list."""
    ledger = Ledger()
    for one in (hole(GapOpened, 1, 3, 5), hole(GapOpened, 1, 3, 5), hole(GapOpened, 2, 9, 9)):
        ledger.take(one)
    assert ledger.take(hole(GapClosed, 4, 3, 5)) is not None
    assert ledger.take(hole(GapClosed, 5, 3, 5)) is None
    assert ledger.take(hole(GapOpened, 6, 3, 5)) is None
    (closed, missing) = ledger.all()
    assert isinstance(closed, Gap)
    assert (closed.frames, closed.opened_at, closed.closed_at) == (
        3, NOW + timedelta(seconds=1), NOW + timedelta(seconds=4),
    )  # fmt: skip
    assert ledger.all(only_open=True) == [missing]


def test_a_gap_whose_opening_is_forgotten_is_closed() -> None:
    """The stream keeps thirty days."""
    ledger = Ledger()
    ledger.take(hole(GapClosed, 4, 3, 5))
    (gap,) = ledger.all()
    assert not gap.open
    assert row_of(gap)[2:4] == ("-", "2026-01-01 00:00:04.000")


def test_a_silence_grows_and_ends() -> None:
    """Suspected, then silent, then heard; the next one is another."""
    ledger = Ledger()
    ledger.take(event(HostSuspected, 1))
    ledger.take(event(HostSilent, 10))
    ledger.take(event(HostSuspected, 2, host="h2"))
    assert [one.open for one in ledger.all()] == [True, True]
    heard = ledger.take(event(HostHeard, 30, silent_ms=30_500))
    assert isinstance(heard, Silence)
    assert (heard.level, heard.silent_ms) == ("silent", 30_500)
    assert ledger.take(event(HostHeard, 30, silent_ms=30_500)) is None
    ledger.take(event(HostSuspected, 60))
    assert [one.host for one in ledger.all(only_open=True)] == ["h2", "h1"]
    assert len(ledger.all()) == 3
    assert ledger.take(event(HostDrained, 70)) is None


def test_what_came_late_is_listed_once_and_is_nothing_open() -> None:
    """An event that is told twice is one adjustment."""
    ledger = Ledger()
    late = event(
        MeteringAdjusted, 60, lost_at=NOW, first_tick=NOW, last_tick=NOW, frames=4, rows=12
    )
    told = ledger.take(late)
    assert isinstance(told, Adjustment)
    assert ledger.take(late) is None
    assert ledger.all() == [told]
    assert ledger.all(only_open=True) == []
    assert row_of(told) == (
        "4 frames", "h1", "2026-01-01 00:00:00.000", "2026-01-01 00:00:00.000", "adjusted",
        "12 samples; lost since 2026-01-01 00:00:00.000",
    )  # fmt: skip


def test_an_adjustment_says_how_it_came_to_be_and_what_is_not_known() -> None:
    """What was refused before is new; of a replay nobody can say."""
    ledger = Ledger()
    common: dict[str, Any] = {
        "lost_at": NOW,
        "first_tick": NOW,
        "last_tick": NOW,
        "frames": 4,
        "rows": 12,
    }
    kinds: tuple[dict[str, Any], ...] = (
        {"cause": "retry", "replay_id": "r1", "reason": "its record [came] late"},
        {"cause": "replay", "replay_id": "r2", "reason": "to be sure", "uncertain": True},
        {"cause": "tomorrow", "replay_id": "r3", "reason": "x"},
    )
    for second, more in enumerate(kinds):
        ledger.take(event(MeteringAdjusted, second, **common, **more))
    assert [row_of(one)[4:] for one in ledger.all()] == [
        ("adjusted", "12 samples; refused before, put back by r1 (its record [came] late)"),
        (
            "may be adjusted",
            "12 samples; replay, changes nothing that is stored already: r2 (to be sure)",
        ),
        ("adjusted", "12 samples; tomorrow r3 (x)"),
    ]
    assert {one.lost_at for one in ledger.all() if isinstance(one, Adjustment)} == {None}
    assert gaps_table(ledger.all()).row_count == 3


def test_a_host_is_lost_until_it_is_found() -> None:
    """Said again it is one; an operator's word takes the place of a collector's."""
    ledger = Ledger()
    lost = event(HostLost, 1, reason="no frame", requested_by="collector 1", automatic=True)
    assert isinstance(ledger.take(lost), Loss)
    assert ledger.take(lost) is None
    burnt = event(HostLost, 1, reason="burnt", requested_by="ann")
    assert ledger.take(burnt) is not None
    (loss,) = ledger.all(only_open=True)
    assert row_of(loss) == (
        "no host", "h1", "2026-01-01 00:00:01.000", "-", "lost", "burnt (ann)",
    )  # fmt: skip
    found = event(HostFound, 9)
    assert ledger.take(found) is not None
    assert ledger.take(found) is None
    assert ledger.take(lost) is None
    assert ledger.all(only_open=True) == []
    ledger.take(event(HostLost, 20, reason="again", requested_by="ann"))
    ledger.take(event(HostFound, 30, host="h2"))
    assert [row_of(one)[1:] for one in ledger.all()] == [
        ("h1", "2026-01-01 00:00:01.000", "2026-01-01 00:00:09.000", "found", "burnt (ann)"),
        ("h1", "2026-01-01 00:00:20.000", "-", "lost", "again (ann)"),
        ("h2", "-", "2026-01-01 00:00:30.000", "found", ""),
    ]


def test_each_is_a_row_for_people() -> None:
    """What it is, of which host, since when, until when."""
    ledger = Ledger()
    for one in (
        hole(GapOpened, 1, 3, 5),
        event(HostSilent, 10),
        event(HostHeard, 12, silent_ms=2000),
        event(HostHeard, 5, host="h3", silent_ms=1000),
    ):
        ledger.take(one)
    rows = [row_of(one) for one in ledger.all()]
    assert rows[0][:2] == ("3 frames", "h1")
    assert rows[0][4:] == ("missing", f"run {RUN} seq 3-5")
    assert rows[1][4] == "heard again for 1.000 s"
    assert rows[2][4] == "heard again for 2.000 s"
    assert gaps_table(ledger.all()).row_count == 3
