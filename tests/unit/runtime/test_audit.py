"""The two entries of an act belong together."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from runtime.audit import Act
from schemas.audit import AuditOutcome
from schemas.ids import new_id

BEGIN, END = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)


def test_both_entries_of_an_act_say_whose_and_what_it_is() -> None:
    """All but their own ids, times and ends; the last one also says what was found."""
    act = Act(
        act_id=new_id(), actor="tester", action="store-repair", target="usage of a day",
        reason="because", details={"day": "1", "left": "unknown"},
    )  # fmt: skip
    begun = act.begun(BEGIN)
    ended = act.ended(END, AuditOutcome.FAILED, {"left": "0", "error": "no"})
    assert (begun.at, begun.outcome) == (BEGIN, "under_way")
    assert (ended.at, ended.outcome) == (END, "failed")
    assert begun.event_id != ended.event_id
    own = dict.fromkeys(("event_id", "at", "outcome", "details"))
    same = [{**msgspec.structs.asdict(entry), **own} for entry in (begun, ended)]
    assert same[0] == same[1]
    assert same[0]["customer_id"] == "operator"
    act_id = str(act.act_id)
    assert begun.details == {"day": "1", "left": "unknown", "phase": "begun", "act_id": act_id}
    assert ended.details == {
        "day": "1", "left": "0", "error": "no", "phase": "ended", "act_id": act_id,
    }  # fmt: skip


def test_nothing_that_was_found_hides_which_entry_of_which_act_it_is() -> None:
    """Readers put the two together by these words."""
    act = Act(act_id=new_id(), actor="t", action="a", target="t", reason="r")
    found = {"phase": "begun", "act_id": "another"}
    details = act.ended(END, AuditOutcome.SUCCEEDED, found).details
    assert details == {"phase": "ended", "act_id": str(act.act_id)}
