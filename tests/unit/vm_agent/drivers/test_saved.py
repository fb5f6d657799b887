"""Numbers that outlive the agent come back as they were, or are known to be damaged."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vm_agent.drivers.saved import DamagedError, SavedNumbers


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8))
def test_saved_numbers_come_back(numbers: list[int]) -> None:
    """Save, load, in another process too."""
    with tempfile.TemporaryDirectory(prefix="dsm-") as directory:
        path = Path(directory) / "state"
        saved = SavedNumbers(path, len(numbers))
        assert saved.load() is None
        saved.save(*reversed(numbers))
        saved.save(*numbers)
        other = SavedNumbers(path, len(numbers))
        assert other.load() == tuple(numbers)
        for each in (saved, other):
            each.close()


@given(st.data())
def test_any_change_to_saved_numbers_is_noticed(data: st.DataObject) -> None:
    """One flipped bit, a cut, an addition."""
    with tempfile.TemporaryDirectory(prefix="dsm-") as directory:
        path = Path(directory) / "state"
        saved = SavedNumbers(path, 3)
        saved.save(1, 2, 3)
        good = path.read_bytes()
        at = data.draw(st.integers(0, len(good) - 1))
        flipped = bytearray(good)
        flipped[at] ^= 1 << data.draw(st.integers(0, 7))
        cut = good[: at or 1]
        path.write_bytes(data.draw(st.sampled_from([bytes(flipped), cut, good + b"x"])))
        with pytest.raises(DamagedError):
            saved.load()
        saved.close()
