"""JSON and Unix sockets from CPython's C modules alone.

The packages around them, `json` and `socket`, import `re`, `enum` and `selectors`: 1.4 MB and 9 ms
of CPU time in each of a thousand processes, a third of what they need in all.
"""

from __future__ import annotations

import _json
import _socket

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

MAX_DEPTH = 127
"""Maps and lists within each other; as serde_json, which Firecracker uses, has it."""

_BLANK = " \t\n\r"
quote = _json.encode_basestring_ascii
"""A text as a JSON string."""


class JsonError(ValueError):
    """A text is no JSON, or nested too deep."""


def _finite(text: str) -> float:
    value = float(text)
    if value - value != 0:
        raise ValueError("number out of range")
    return value


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


class _Settings:
    """What `json.decoder.JSONDecoder` tells the scanner, but for numbers that are none."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    array_hook = None
    parse_float = staticmethod(_finite)
    parse_int = int
    parse_constant = staticmethod(_no_number)


_scan = _json.make_scanner(_Settings)  # type: ignore[arg-type] # typeshed names another class


def parse(text: bytes) -> Json:
    """The value that a JSON text stands for.

    Raises:
        JsonError: For none, and for one that is nested deeper than `MAX_DEPTH`.
    """
    value: Json
    try:
        document = text.decode().strip(_BLANK)
        value, end = _scan(document, 0)
    except (ValueError, StopIteration, SystemError, RecursionError) as error:
        # The scanner of 3.11 looks for an exception class in `json.decoder`, which nobody has
        # imported, and fails with a SystemError.
        raise JsonError("not JSON") from error
    if end != len(document):
        raise JsonError("trailing characters")
    if _deeper(value, MAX_DEPTH):
        raise JsonError("recursion limit exceeded")
    return value


def _deeper(value: Json, depth: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    parts = value.values() if isinstance(value, dict) else value
    return depth == 0 or any(_deeper(part, depth - 1) for part in parts)


def render(value: Json) -> str:
    """The JSON text of a value that `parse` can make, or that is nested as little."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{quote(name)}:{render(part)}" for name, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(render, value)) + "]"
    if isinstance(value, str):
        return quote(value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def listen(path: str, backlog: int) -> _socket.socket:
    """A listening Unix socket that does not block.

    Raises:
        OSError: The path is taken, too long or nowhere.
    """
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    listener.bind(path)
    listener.listen(backlog)
    listener.setblocking(False)
    return listener


def accept(listener: _socket.socket) -> int:
    """The descriptor of the next connection.

    Raises:
        OSError: There is none.
    """
    # As `socket.socket.accept` does it; typeshed does not tell of it.
    descriptor: int = listener._accept()[0]  # type: ignore[attr-defined]  # noqa: SLF001
    return descriptor
