"""When lives begin, which VMs are deleted as they run, and which plans are refused."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest

from tests.load.flood.commands.plan import StormPlan


def test_lives_begin_evenly() -> None:
    """At the rate."""
    plan = StormPlan(lives=10, rate=4.0)
    assert [plan.due_s(n) for n in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_a_burst_begins_at_once_at_the_same_rate() -> None:
    """Five at a time are due together, and a life later is due as it would be without bursts."""
    plan = StormPlan(lives=20, rate=4.0, burst=5)
    assert {plan.due_s(n) for n in range(5)} == {0.0}
    assert {plan.due_s(n) for n in range(5, 10)} == {1.25}
    assert plan.due_s(10) == StormPlan(lives=20, rate=4.0).due_s(10)


def test_the_rate_grows_over_the_ramp() -> None:
    """Half as many lives as at full speed, later and later less apart, and then the rate."""
    plan = StormPlan(lives=200, rate=10.0, ramp_s=10.0)
    due = [plan.due_s(n) for n in range(200)]
    assert sum(at < 10.0 for at in due) == 50
    gaps = [later - at for at, later in itertools.pairwise(due)]
    assert all(later <= gap + 1e-9 for gap, later in itertools.pairwise(gaps))
    assert math.isclose(gaps[-1], 0.1)
    assert math.isclose(gaps[50], 0.1, rel_tol=0.01)


def test_a_share_of_vms_is_deleted_as_they_run() -> None:
    """The same ones with the same seed; none and all at the ends."""
    plan = StormPlan(lives=1000, killed=0.3)
    assert 250 < sum(plan.kills()) < 350
    assert plan.kills() == plan.kills() != dataclasses.replace(plan, seed=2).kills()
    assert not any(dataclasses.replace(plan, killed=0.0).kills())
    assert all(dataclasses.replace(plan, killed=1.0).kills())


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("lives", 0, "--lives: at least 1 and at most 100,000, not 0"),
        ("lives", 100_001, "--lives: "),
        ("rate", 0.0, "--rate: more than 0 and at most 1,000, not 0"),
        ("rate", math.nan, "--rate: .* not nan"),
        ("ramp_s", math.inf, "--ramp-s: "),
        ("burst", 51, "--burst: at least 1 and at most 50, not 51"),
        ("at_once", 0, "--at-once: "),
        ("up_s", -1.0, "--up-s: "),
        ("killed", 1.1, "--killed: at least 0 and at most 1, not 1.1"),
        ("tries", 0, "--tries: "),
        ("within_s", 0.0, "--within-s: "),
        ("memory_mib", 8, "--memory-mib: at least 16"),
        ("through", "door", "--through: one of http, bus, both; not 'door'"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_says_what_to_change(
    field: str, value: object, words: str
) -> None:
    """The option by its name, and what it may be."""
    plan = StormPlan(**{field: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=words):
        plan.check()


def test_the_plan_by_default_is_bounded_and_can_be_carried_out() -> None:
    """In time and count."""
    plan = StormPlan()
    plan.check()
    assert plan.lives <= 100
    assert plan.due_s(plan.lives - 1) <= 30
