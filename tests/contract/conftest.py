"""The drivers that every contract suite is run over: real processes, nothing replaced."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.hypervisors import DRIVERS, Lab, Rig, open_lab, processes_in, rig


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Guest and hypervisors, tried out once."""
    with open_lab() as made:
        yield made


@pytest.fixture(params=DRIVERS)
async def bench(request: pytest.FixtureRequest, lab: Lab) -> AsyncIterator[Rig]:
    """A driver of each kind; checks afterwards that no process is left."""
    async with rig(lab, request.param) as made:
        yield made
    assert not processes_in(made.directory)
