"""Bodies of requests, taken apart; what is wrong is told in the vendor's words."""

from __future__ import annotations

import os

from vm_agent.simulator.cpython import JsonError, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vm_agent.simulator.cpython import Json

_BODY = "An error occurred when deserializing the json body of a request: "


class Refusal(Exception):  # noqa: N818 - it is an answer, not a failure
    """A request that Firecracker answers with 400 and this message."""


def malformed(problem: str) -> Refusal:
    """The refusal of a body that is not as it must be."""
    return Refusal(f"{_BODY}{problem}.")


def value_of(body: bytes) -> Json:
    """Any JSON."""
    if not body:
        raise Refusal("Empty PUT request.")
    try:
        return parse(body)
    except JsonError as error:
        raise malformed(str(error)) from error


def map_of(body: bytes, known: tuple[str, ...] = ()) -> dict[str, Json]:
    """A map; with `known`, one that has no other fields than these."""
    try:
        value = parse(body)
    except JsonError as error:
        raise malformed(str(error)) from error
    return as_map(value, known)


def as_map(value: Json, known: tuple[str, ...] = ()) -> dict[str, Json]:
    """A value that must be a map; with `known`, one that has no other fields than these."""
    if not isinstance(value, dict):
        raise malformed("invalid type, expected a map")
    for name in value if known else ():
        if name not in known:
            words = ", ".join(f"`{each}`" for each in known)
            raise malformed(f"unknown field `{name[:40]}`, expected one of {words}")
    return value


def text_in(body: dict[str, Json], name: str) -> str:
    """A field that is a text."""
    value = body.get(name)
    if not isinstance(value, str) or "\0" in value:
        raise malformed(f"missing field `{name}`")
    return value


def flag_in(body: dict[str, Json], name: str) -> bool:
    """A field that is true or false."""
    value = body.get(name)
    if not isinstance(value, bool):
        raise malformed(f"missing field `{name}`")
    return value


def number_in(body: dict[str, Json], name: str, least: int, most: int) -> int:
    """A field that is an integer."""
    value = body.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise malformed(f"missing field `{name}`")
    if not least <= value <= most:
        raise Refusal(f"The value of `{name}` is not between {least} and {most}.")
    return value


def readable(path: str, what: str) -> None:
    """A path that must name a file."""
    if not os.access(path, os.R_OK):
        raise Refusal(f"{what}: cannot open {path}: No such file or directory (os error 2)")
