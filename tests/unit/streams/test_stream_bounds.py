"""Ends of a range as people write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decisec.streams.bounds import Bound, parse_bound

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("17", 17),
        ("-2h", NOW - timedelta(hours=2)),
        ("-1.5s", NOW - timedelta(seconds=1.5)),
        ("-250ms", NOW - timedelta(milliseconds=250)),
        ("-90m", NOW - timedelta(minutes=90)),
        ("-3d", NOW - timedelta(days=3)),
        ("2026-01-31T11:00:00Z", NOW - timedelta(hours=1)),
        ("2026-01-31T12:00:00+01:00", NOW - timedelta(hours=1)),
        ("2026-01-31T11:00:00", NOW - timedelta(hours=1)),
        ("2026-01-31", NOW - timedelta(hours=12)),
    ],
)
def test_sequences_times_and_times_ago_are_told_apart(text: str, bound: Bound) -> None:
    """A time without offset is in UTC."""
    assert parse_bound(text, NOW) == bound


@pytest.mark.parametrize(
    "text", ["", "-2", "2h", "-2w", "yesterday", "-1h2m", "1e3", "-999999999d"]
)
def test_anything_else_is_told_in_a_sentence(text: str) -> None:
    """What it could have been is named."""
    with pytest.raises(ValueError, match=r"no sequence|before all time"):
        parse_bound(text, NOW)


@given(st.text(max_size=20))
def test_any_text_is_a_bound_with_an_offset_or_a_value_error(text: str) -> None:
    """No other error comes out, and no time without offset."""
    try:
        bound = parse_bound(text, NOW)
    except ValueError:
        return
    assert isinstance(bound, int) or bound.tzinfo is not None
