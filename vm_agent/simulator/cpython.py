"""JSON and Unix sockets from CPython's C modules alone.

The packages around them, `json` and `socket`, import `re`, `enum` and `selectors`: 1.4 MB and 9 ms
of CPU time in each of a thousand processes, a third of what they need in all.
"""

from __future__ import annotations

import _json
import _socket

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

_BLANK = " \t\n\r"
quote = _json.encode_basestring_ascii
"""A text as a JSON string."""


class JsonError(ValueError):
    """A text is no JSON, or nested too deep."""


class _Settings:
    """What `json.decoder.JSONDecoder` tells the scanner, with its defaults."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    array_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float


_scan = _json.make_scanner(_Settings)  # type: ignore[arg-type] # typeshed names another class


def parse(text: bytes) -> Json:
    """The value that a JSON text stands for.

    Raises:
        JsonError: For none.
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
    return value


def render(value: Json) -> str:
    """The JSON text of maps, texts and integers."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{quote(name)}:{render(part)}" for name, part in value.items()) + "}"
    if isinstance(value, str):
        return quote(value)
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
