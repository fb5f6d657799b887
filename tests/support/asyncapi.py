"""AsyncAPI 3.0 as far as we use it, strictly: a name that the specification has not is an error.

https://www.asyncapi.com/docs/reference/specification/v3.0.0
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import jsonschema_rs
import msgspec

Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9.\-_]+$")]
Words = Annotated[str, msgspec.Meta(min_length=1)]
Expression = Annotated[str, msgspec.Meta(pattern=r"^\$message\.(header|payload)#(/[^/~]+)+$")]


class _Strict(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    pass


class Reference(_Strict):
    """Another object of the document."""

    ref: Annotated[str, msgspec.Meta(pattern="^#/")] = msgspec.field(name="$ref")


class Info(_Strict):
    """Of the document."""

    title: Words
    version: Words
    description: Words


class Server(_Strict):
    """Where it is."""

    host: Words
    protocol: Literal["nats"]
    description: Words


class ParameterObject(_Strict):
    """Of an address: itself, or where it stands."""

    description: Words | None = None
    enum: list[Words] | None = None
    examples: list[Words] | None = None
    ref: Words | None = msgspec.field(default=None, name="$ref")

    def __post_init__(self) -> None:
        if (self.description is None) == (self.ref is None):
            raise ValueError("a parameter is described or referred to")


class ChannelObject(_Strict):
    """An address and its messages."""

    address: str | None
    title: Words
    summary: Words
    messages: dict[Name, Reference]
    description: Words | None = None
    parameters: dict[Name, ParameterObject] | None = None
    stream: Words | None = msgspec.field(default=None, name="x-decisec-stream")
    bucket: Words | None = msgspec.field(default=None, name="x-decisec-bucket")


class Tag(_Strict):
    """A word."""

    name: Words


class OperationReply(_Strict):
    """What answers."""

    channel: Reference
    messages: list[Reference]


class OperationObject(_Strict):
    """What a role does."""

    action: Literal["send", "receive"]
    channel: Reference
    summary: Words
    tags: Annotated[list[Tag], msgspec.Meta(min_length=1, max_length=1)]
    how: Annotated[list[Words], msgspec.Meta(min_length=1)] = msgspec.field(name="x-decisec-how")
    messages: list[Reference] | None = None
    reply: OperationReply | None = None


class CorrelationId(_Strict):
    """By what messages belong together."""

    location: Expression


class MessageExample(_Strict):
    """An example."""

    name: Words
    payload: Any


class MessageObject(_Strict):
    """What is said."""

    name: Words
    title: Words
    summary: Words
    payload: dict[str, Any]
    description: Words | None = None
    headers: dict[str, Any] | None = None
    content_type: Words | None = None
    correlation_id: CorrelationId | None = None
    examples: list[MessageExample] | None = None


class Components(_Strict):
    """What is referred to."""

    schemas: dict[Name, dict[str, Any]]
    messages: dict[Name, MessageObject]
    parameters: dict[Name, ParameterObject]


class AsyncApi(_Strict):
    """The document."""

    asyncapi: Literal["3.0.0"]
    info: Info
    default_content_type: Literal["application/json"]
    servers: dict[Name, Server]
    channels: dict[Name, ChannelObject]
    operations: dict[Name, OperationObject]
    components: Components


def references(value: Any) -> Iterator[str]:
    """All that a document refers to."""
    match value:
        case {"$ref": str(reference)}:
            yield reference
        case dict():
            for one in value.values():
                yield from references(one)
        case list():
            for one in value:
                yield from references(one)


def found_at(document: Mapping[str, Any], reference: str) -> Any:
    """What stands there.

    Raises:
        KeyError: Nothing does.
    """
    found: Any = document
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found


class Payloads:
    """Checks payloads and headers against a document's schemas."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        self._known: dict[str, Any] = {}

    def problems(self, message: str, payload: Any) -> list[str]:
        """What the schema of a message has against a payload in its JSON form."""
        return self._check(message, "payload", payload)

    def problems_of_headers(self, message: str, headers: Mapping[str, str]) -> list[str]:
        """The same for headers, and those that are not described."""
        said = self._document["components"]["messages"][message].get("headers")
        strange = sorted(headers.keys() - set(said["properties"] if said else ()))
        found = [f"the header {name} is not described" for name in strange]
        return found + (self._check(message, "headers", dict(headers)) if said else [])

    def _check(self, message: str, what: str, value: Any) -> list[str]:
        key = f"{message}/{what}"
        if key not in self._known:
            schema = {
                "$schema": "http://json-schema.org/draft-07/schema#",
                "allOf": [self._document["components"]["messages"][message][what]],
                "components": {"schemas": self._document["components"]["schemas"]},
            }
            self._known[key] = jsonschema_rs.Draft7Validator(schema, validate_formats=True)
        return [
            f"{'/'.join(map(str, error.instance_path))}: {error.message}"[:300]
            for error in self._known[key].iter_errors(value)
        ]
