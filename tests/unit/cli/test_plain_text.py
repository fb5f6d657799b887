"""A guest's bytes on a terminal: nothing in them can control it."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decisec.cli.plain_text import PlainText

ODD = st.lists(
    st.sampled_from(
        [b"\x1b", b"[", b"]", b"\\", b"\x07", b"\n", b"3", b";", b" ", b"m", b"P", b"x", b"\r",
         b"\xc3", b"\xa9", b"\xc2\x9b", b"\xff", b"\xe2\x80\xae"]
    )
    | st.binary(max_size=3),
    max_size=40,
).map(b"".join)  # fmt: skip


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"plain text\twith\r\nlines\n", "plain text\twith\nlines\n"),
        (b"\x1b[1;31mred\x1b[0m \x1b[2J\x1b[10;10Hhome\x1bc", "red home"),
        (b"\x1b]0;a title\x07shown\x1b]52;c;ZXZpbA==\x1b\\too", "showntoo"),
        (b"\x1b]0;never ended\nnext line", "\nnext line"),
        (b"\x1bP+q544e\x1b\\\x1b(0\x1b[?1049hx", "x"),
        ("\x9b31m \u009d0;x\u009c é 日本 \u202eevil\u2066".encode(), "31m 0;x é 日本 evil"),
        (b"\xff\xfe caf\xc3\xa9", "\ufffd\ufffd café"),
        (b"\x00\x07\x08\x0b\x0c\x0e\x7f|", "|"),
    ],
)
def test_sequences_go_and_words_stay(data: bytes, text: str) -> None:
    """Colours, titles, clipboards, screens; C1 controls in UTF-8; turned writing."""
    assert PlainText().feed(data) == text


@given(ODD)
def test_no_control_character_comes_through(data: bytes) -> None:
    """Whatever the bytes."""
    for character in PlainText().feed(data):
        assert character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf")


@given(ODD, st.lists(st.integers(0, 80), max_size=8))
def test_it_does_not_matter_in_which_pieces_the_bytes_come(data: bytes, cuts: list[int]) -> None:
    """A sequence in two pieces is one sequence."""
    whole = PlainText().feed(data)
    text, begin, parts = PlainText(), 0, []
    for cut in [*sorted(cuts), len(data)]:
        parts.append(text.feed(data[begin:cut]))
        begin = max(begin, cut)
    assert "".join(parts) == whole


@given(st.integers(0, 4000))
def test_no_sequence_swallows_the_rest(length: int) -> None:
    """One that never ends is cut off where none is that long."""
    for begin in (b"\x1b]", b"\x1b[", b"\x1bP"):
        text = PlainText()
        text.feed(begin + b"1" * length)
        assert text.feed(b"\nseen").endswith("\nseen")
