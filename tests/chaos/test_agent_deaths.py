"""The agent dies at named steps and at random: no VM is lost, nothing leaks, bills are exact.

A short siege; `just chaos agent` is the long one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.siege import siege
from tests.support.connected_agent import lack, surroundings
from tests.support.hypervisors import Lab, open_lab

pytestmark = [pytest.mark.chaos, pytest.mark.hypervisor, pytest.mark.timeout(300)]

EVERY = 24
"""Of so many named steps one is taken here; chance comes besides."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with open_lab() as opened:
        yield opened


@pytest.mark.parametrize("driver", ["firecracker", "simulator"])
async def test_an_agent_may_die_whenever_it_will(tmp_path: Path, lab: Lab, driver: str) -> None:
    """What was running runs on, what was begun is finished, what nobody owns is gone."""
    async with siege(tmp_path, lab, driver, seed=7) as made:
        await made.settle_in(writers=1)
        steps = await made.list_steps()
        assert len(steps) > EVERY, "there is nothing to die at"
        for step in steps[::EVERY]:
            await made.die(step)
        starts = await made.list_start_steps()
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
async def test_an_agent_that_connects_vms_may_die_whenever_it_will(
    tmp_path: Path, lab: Lab
) -> None:
    """Each VM that runs is connected and has its rules, and nothing else is left of any."""
    async with (
        surroundings() as around,
        siege(tmp_path, lab, "firecracker", seed=7, network=around.settings) as made,
    ):
        await made.settle_in(writers=1)
        steps = [step for step in await made.list_steps() if about_the_network(step)]
        assert steps, "the network is changed in no step that has a name"
        for step in steps[::8]:
            await made.die(step)
        for _ in range(2):
            await made.die(None)
        await made.conclude()
    assert not made.toll.problems, "\n".join(made.toll.problems)
    assert made.toll.bytes_exact > 0


def about_the_network(step: str) -> bool:
    """Whether a step makes or removes something of a VM's connection."""
    return step.startswith(("netlink", "fcntl.ioctl")) or "/run/netns" in step
