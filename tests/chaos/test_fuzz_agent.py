"""A short fuzz; `just fuzz-agent` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.fuzzing.run import Plan, fuzz_agent

pytestmark = pytest.mark.timeout(180)

MESSAGES = 6_000


async def test_an_agent_does_nothing_for_bad_messages_and_all_for_good_ones(
    tmp_path: Path,
) -> None:
    """Each is refused and counted as the model says, and the witnesses live as always."""
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"\x7fELF: the simulator boots anything")
    plan = Plan("simulator", MESSAGES, seed=11, restart=False, rest_s=0.3)
    report = await fuzz_agent(tmp_path, kernel, plan)
    assert report["problems"] == []
    assert sum(report["made"].values()) == MESSAGES
    assert report["redelivered"] == 0
    assert report["lives"]["incarnations"] > 3
