"""Looking things up in the document: a message by name or subject, its schema as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from decisec.messages.catalog import channel_of

Document = Mapping[str, Any]

DIALECT = "http://json-schema.org/draft-07/schema#"
_SCHEMAS = "#/components/schemas/"
_DEFINITIONS = "#/definitions/"


class Line(NamedTuple):
    """A channel in a list.

    Attributes:
        subject: With parameters in braces.
        messages: Names of what is said on it.
        replies: Names of what answers.
        send: Roles that may say it, and by which right.
        receive: Roles that may hear it, likewise.
        kept: The stream or bucket that keeps it; empty for none.
    """

    subject: str
    summary: str
    messages: tuple[str, ...]
    replies: tuple[str, ...]
    send: dict[str, list[str]]
    receive: dict[str, list[str]]
    kept: str


def lines(document: Document, role: str = "") -> Iterator[Line]:
    """All channels, or those on which a role may do something."""
    rights: dict[tuple[str, str], dict[str, list[str]]] = {}
    for operation in document["operations"].values():
        channel = _last(operation["channel"]["$ref"])
        mine = rights.setdefault((channel, operation["action"]), {})
        mine[operation["tags"][0]["name"]] = operation["x-decisec-how"]
    for name, channel in document["channels"].items():
        send, receive = rights.get((name, "send"), {}), rights.get((name, "receive"), {})
        if channel["address"] is None or (role and role not in {*send, *receive}):
            continue
        replies = document["channels"].get(f"{name}Reply", {"messages": {}})["messages"]
        yield Line(
            channel["address"],
            channel["summary"],
            tuple(_last(one["$ref"]) for one in channel["messages"].values()),
            tuple(replies),
            send,
            receive,
            channel.get("x-decisec-stream") or channel.get("x-decisec-bucket", ""),
        )


def named(document: Document, name: str) -> dict[str, Any] | None:
    """A message by its name, or the one that is said on a subject; None if there is none.

    A subject may have its parameters in braces or as they are in use.
    """
    messages = document["components"]["messages"]
    if name in messages:
        return dict(messages[name])
    for channel in document["channels"].values():
        if channel["address"] == name:
            return dict(messages[next(iter(channel["messages"]))])
    if (found := channel_of(name)) is None:
        return None
    kind, parameters = found
    said = kind.messages.get(parameters.get(kind.selector, ""))
    return dict(messages[(said or next(iter(kind.messages.values()))).key])


def whole(document: Document, schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema that stands by itself: what it refers to is in it."""
    found: dict[str, Any] = {}
    needed = list(_references(schema))
    while needed:
        name = needed.pop()
        if name not in found:
            found[name] = document["components"]["schemas"][name]
            needed += _references(found[name])
    alone: dict[str, Any] = {"$schema": DIALECT, "allOf": [_moved(schema)]}
    if found:
        alone["definitions"] = {name: _moved(found[name]) for name in sorted(found)}
    return alone


def _references(schema: Any) -> Iterator[str]:
    match schema:
        case {"$ref": str(reference)}:
            yield _last(reference)
        case dict():
            for one in schema.values():
                yield from _references(one)
        case list():
            for one in schema:
                yield from _references(one)


def _moved(schema: Any) -> Any:
    match schema:
        case {"$ref": str(reference)}:
            return {"$ref": reference.replace(_SCHEMAS, _DEFINITIONS)}
        case dict():
            return {name: _moved(one) for name, one in schema.items()}
        case list():
            return [_moved(one) for one in schema]
    return schema


def _last(reference: str) -> str:
    return reference.rpartition("/")[2]
