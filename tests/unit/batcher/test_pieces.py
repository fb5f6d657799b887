"""Which rollup is read where: nothing twice, nothing left out, no row cut by an edge."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from batcher.pieces import LEVELS, coarsest, cover, parameters
from batcher.windows import DAY_MS, HOUR_MS, Window

MOMENTS = st.one_of(
    st.integers(1, 4 * DAY_MS),
    st.integers(0, 96).map(lambda hours: hours * HOUR_MS),
    st.integers(0, 5760).map(lambda minutes: minutes * 60_000),
)


@given(
    st.lists(MOMENTS, min_size=2, max_size=2, unique=True).map(sorted),
    st.sampled_from(list(LEVELS.values())),
    st.integers(0, 96).map(lambda hours: hours * HOUR_MS),
)
def test_pieces_cover_all_once_in_whole_rows(
    ends: list[int], longest: int, rolled_until: int
) -> None:
    """Whatever the ends, the longest rows and how far hours are whole."""
    low, high = ends
    pieces = cover(low, high, longest, rolled_until)
    every = sorted(piece for found in pieces.values() for piece in found)
    assert every[0][0] == low
    assert every[-1][1] == high
    assert all(a[1] == b[0] for a, b in pairwise(every))
    for level, found in pieces.items():
        assert len(found) <= 2
        for begin, end in found:
            assert begin % LEVELS[level] == end % LEVELS[level] == 0 or LEVELS[level] == 1
            assert LEVELS[level] <= longest
            assert LEVELS[level] < HOUR_MS or end <= rolled_until


@given(st.lists(MOMENTS, min_size=2, max_size=6, unique=True).map(sorted))
def test_no_row_is_cut_by_an_edge(edges: list[int]) -> None:
    """Each edge between two windows is a whole number of the rows that are read there."""
    unit = coarsest(edges)
    assert all(edge % unit == 0 for edge in edges[1:-1])
    given_ = parameters(edges, Window(edges[0], edges[-1]))
    assert given_["edges"] == edges[:-1]
    if unit < 60_000:
        assert given_["counted_a"] == given_["counted_b"]
