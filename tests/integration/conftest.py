"""What tests of agents with real hypervisors and networks share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.connected_agent import Surroundings, surroundings
from tests.support.hypervisors import Lab, open_lab


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The guest, and the hypervisors that work here, tried out once."""
    with open_lab() as opened:
        yield opened


@pytest.fixture
async def around() -> AsyncIterator[Surroundings]:
    """Where an agent's fabric leads."""
    async with surroundings() as made:
        yield made
