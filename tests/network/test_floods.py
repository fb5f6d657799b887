"""One VM floods: others lose nothing, no table of the host fills. `just flood-network` times it."""

from __future__ import annotations

import pytest

from tests.network.cases.base import VMS
from tests.network.flood.frames import KINDS
from tests.network.flood.victims import Felt, feel, flooding
from tests.network.suite import guarded
from tests.support.fabric import available

pytestmark = pytest.mark.skipif(available() is not None, reason=available() or "rules work")

_SHORT_S = 0.05
_LEARNED = 20
"""Sources that a VM with a /64 may have the host remember, and some to spare."""


async def test_a_flood_costs_others_nothing() -> None:
    """Of each kind for a moment."""
    async with guarded() as (fabric, _, _):
        before = Felt()
        feel(fabric, 0, before)
        with flooding(fabric) as sender:
            for kind in KINDS:
                felt = Felt()
                with sender.of(kind, felt):
                    feel(fabric, _SHORT_S, felt)
                assert (kind, felt.lost) == (kind, 0)
                assert felt.sent > 0
                assert felt.neighbours <= before.neighbours + len(VMS) + _LEARNED
