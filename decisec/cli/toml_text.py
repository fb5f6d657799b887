"""Writes TOML 1.0, which the standard library only reads.

Texts, whole numbers, truths, lists of these, and tables, however deep: what configuration of ours
is made of. Reading what was written gives the same again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def to_toml(document: Mapping[str, Any], comments: Mapping[str, str] | None = None) -> str:
    """A document as text.

    Args:
        document: Keys and values; a mapping is a table.
        comments: What to write beside a value, by the key of its line.

    Raises:
        TypeError: A value is of no kind that stands above.
    """
    lines: list[str] = []
    _table(document, (), lines, comments or {})
    return "\n".join(lines) + "\n" if lines else ""


def _table(
    table: Mapping[str, Any], path: tuple[str, ...], lines: list[str], comments: Mapping[str, str]
) -> None:
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    if path and (plain or not table):
        if lines:
            lines.append("")
        lines.append(f"[{'.'.join(map(_key, path))}]")
    for key, value in plain.items():
        line = f"{_key(key)} = {_value(value)}"
        comment = comments.get(key)
        lines.append(f"{line}  # {comment}" if comment else line)
    for key, value in table.items():
        if isinstance(value, Mapping):
            _table(value, (*path, key), lines, comments)


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _text(key)


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case str():
            return _text(value)
        case list() | tuple():
            return f"[{', '.join(map(_value, value))}]"
        case _:
            raise TypeError(f"no TOML is written for {type(value).__name__}")


def _text(text: str) -> str:
    return '"' + "".join(map(_character, text)) + '"'


def _character(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    # Control characters may not stand in TOML as they are.
    return f"\\u{ord(character):04x}" if character < " " or character == "\x7f" else character
