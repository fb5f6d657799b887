"""The agent dies at named steps and at random: no VM is lost, nothing leaks, bills are exact.

Short sieges; `just chaos agent` and `just chaos network` are the long ones.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.besieging import besieging
from tests.chaos.connected_siege import SPECS, WEIGHTY, about_the_network, connected_siege, sample
from tests.chaos.siege import Siege
from tests.support.connected_agent import lack
from tests.support.hypervisors import Lab, open_lab

pytestmark = [pytest.mark.chaos, pytest.mark.hypervisor, pytest.mark.timeout(300)]

EVERY = 24
"""Of so many named steps one is taken here; chance comes besides."""

MOST_HARM = 6
"""Kinds of frames, at least, that rules and nothing else keep from where they must not come."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with open_lab() as opened:
        yield opened


@pytest.mark.parametrize("driver", ["firecracker", "simulator"])
async def test_an_agent_may_die_whenever_it_will(tmp_path: Path, lab: Lab, driver: str) -> None:
    """What was running runs on, what was begun is finished, what nobody owns is gone."""
    async with besieging(Siege, tmp_path, lab, driver, seed=7) as made:
        await made.settle_in(writers=1)
        # Those about the network have a siege of their own.
        steps = [step for step in await made.list_steps() if not about_the_network(step)]
        assert len(steps) > EVERY, "there is nothing to die at"
        for step in steps[::EVERY]:
            await made.die(step)
        starts = [step for step in await made.list_start_steps() if not about_the_network(step)]
        for step in starts[:: EVERY * 2]:
            await made.die_again(step)
        for _ in range(2):
            await made.die(None)
        await made.conclude()
    assert not made.toll.problems, "\n".join(made.toll.problems)
    assert made.toll.steps
    if driver != "simulator":
        assert made.toll.bytes_exact > 0
        assert made.toll.cpu_exact == 1


@pytest.mark.skipif(lack() is not None, reason=lack() or "nothing is missing")
async def test_an_agent_that_connects_vms_may_die_at_every_step_of_it(
    tmp_path: Path, lab: Lab
) -> None:
    """Nothing is left or open, dead or restarted; a seed says which steps are taken of all."""
    seed = int(os.environ.get("DECISEC_CHAOS_SEED", time.time_ns() % 1_000_000))
    chance = random.Random(seed)  # noqa: S311 - to be repeated
    spec = chance.choice(list(SPECS))
    async with connected_siege(tmp_path, lab, "firecracker", seed) as made:
        steps = await made.list_network_steps(spec)
        weighty = [step for step in steps if step.weighty]
        assert {word for step in weighty for word in step.name.split()} >= {*WEIGHTY}, steps
        others = chance.sample([step for step in steps if step.common], 3)
        for step in (*sample(weighty, chance), *others):
            assert await made.die_at(step), f"seed {seed}: it did not come to {step}"
        got_through = await made.attack_without_rules()
        await made.conclude()
    assert not made.toll.problems, f"seed {seed}: " + "\n".join(made.toll.problems)
    assert made.toll.bytes_exact > 0
    assert len(got_through) >= MOST_HARM, "where there are no rules next to nothing gets through"
