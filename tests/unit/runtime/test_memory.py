"""The garbage collector leaves frames in hand alone, and still finds what goes in circles."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from runtime.memory import spare_the_collector


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


class Ring:
    """Refers to itself."""

    def __init__(self) -> None:
        self.me = self


def test_frames_in_hand_are_not_looked_through_again_and_again() -> None:
    """A hundred thousand new objects start no collection; those that are there stay apart."""
    spare_the_collector()
    assert gc.get_freeze_count() > 0
    collections = [generation["collections"] for generation in gc.get_stats()]
    held = [[number] for number in range(100_000)]
    assert [generation["collections"] for generation in gc.get_stats()] == collections
    assert len(held) == 100_000


def test_circles_are_found_in_the_end() -> None:
    """The collector is rarer, not off."""
    spare_the_collector()
    gone = weakref.ref(Ring())
    assert gone() is not None
    held = [[number] for number in range(250_000)]
    assert gone() is None
    assert len(held) == 250_000


def test_it_is_as_rare_as_wanted() -> None:
    """The agent wants it less rare: it makes fewer objects at once."""
    before = gc.get_threshold()
    spare_the_collector(10_000, 20)
    assert before[0] < gc.get_threshold()[0] == 10_000
    assert gc.isenabled()
    assert gc.get_freeze_count() > 1000
