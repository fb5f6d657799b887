"""Random frames from a VM reach nobody they must not; `just fuzz-network` sends a million."""

from __future__ import annotations

import pytest

from tests.network.fuzz.run import Fuzz
from tests.network.suite import guarded
from tests.support.fabric import available

FRAMES, SEED = 20_000, 1

pytestmark = pytest.mark.skipif(available() is not None, reason=available() or "rules work")


async def test_random_frames_reach_nobody_else() -> None:
    """Some of them leave, some reach the same customer's VMs, none another or the host."""
    async with guarded() as (fabric, nft, _):
        tally = await Fuzz(fabric, nft, SEED).run(FRAMES)
    assert tally.sent == FRAMES
    assert tally.left > FRAMES / 50
    assert tally.to_friends > FRAMES / 200
