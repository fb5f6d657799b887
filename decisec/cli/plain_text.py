"""A stranger's bytes as text that is safe to show on a terminal.

A guest prints what it likes. Written to a terminal as it is, that could move the cursor, change
the title or the keys, fill the clipboard, or make the terminal type an answer into the shell.
"""

from __future__ import annotations

import codecs
import re
import unicodedata

_SEQUENCE = re.compile(
    r"\x1b\[[0-?]{0,64}[ -/]{0,8}[@-~]"  # CSI: colours, cursor
    r"|\x1b[\]PX^_][^\x07\x1b\n]{0,1024}(?:\x07|\x1b\\)?"  # OSC, DCS and the like: up to their end
    r"|\x1b[ -/]{0,8}[0-~]"
)
"""Escape sequences as ECMA-48 has them, bounded: none of them may swallow the rest."""
_BEGUN = re.compile(
    r"\x1b(?:\[[0-?]{0,64}[ -/]{0,8}|[\]PX^_][^\x07\x1b\n]{0,1024}\x1b?|[ -/]{0,8})\Z"
)
"""One that may go on in the next piece."""

_HARMLESS = frozenset("\n\t")
_DROPPED = frozenset({"Cc", "Cf"})
"""Unicode's categories of what controls; Cf turns the direction of writing, among others."""


class PlainText:
    """Takes bytes piece by piece, gives text without anything that a terminal would obey.

    UTF-8 is read, anything else becomes U+FFFD. Escape sequences go as a whole, also if they are
    in two pieces; of the other control characters newline and tab stay.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def feed(self, data: bytes) -> str:
        """The text of a piece; what is only begun at its end comes with the next one."""
        text = self._held + self._decoder.decode(data)
        begun = _BEGUN.search(text)
        end = begun.start() if begun else len(text)
        text, self._held = text[:end], text[end:]
        return "".join(filter(_is_harmless, _SEQUENCE.sub("", text)))


def _is_harmless(character: str) -> bool:
    return (
        " " <= character <= "~"
        or character in _HARMLESS
        or unicodedata.category(character) not in _DROPPED
    )
