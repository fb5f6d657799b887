"""TOML that is written is read again as what it was."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decisec.cli.toml_text import to_toml

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
PLAIN = TEXTS | st.integers(-(2**63), 2**63 - 1) | st.booleans()
TABLES = st.recursive(
    st.dictionaries(TEXTS, PLAIN | st.lists(PLAIN, max_size=3), max_size=4),
    lambda inner: st.dictionaries(TEXTS, PLAIN | inner, max_size=4),
    max_leaves=12,
)


@given(TABLES)
def test_it_is_read_again_as_what_it_was(document: dict[str, Any]) -> None:
    """Any text as key or value, tables however deep, empty ones as well."""
    assert tomllib.loads(to_toml(document)) == document


def test_it_is_for_people_to_read() -> None:
    """Plain values before tables, comments beside them."""
    document = {"labels": {"a": "b"}, "image": "tiny", "size": 1, "deep": {"er": {"x": [True]}}}
    assert to_toml(document, {"size": "in MiB"}) == (
        'image = "tiny"\nsize = 1  # in MiB\n\n[labels]\na = "b"\n\n[deep.er]\nx = [true]\n'
    )


@pytest.mark.parametrize("value", [None, 1.5, b"x", {1}])
def test_what_no_configuration_holds_is_refused(value: object) -> None:
    """Rather than written as something else."""
    with pytest.raises(TypeError):
        to_toml({"x": value})
