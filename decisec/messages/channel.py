"""What a channel of the bus is: an address, the messages on it, and what answers them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

JSON = "application/json"
MSGPACK = "application/msgpack"
BYTES = "application/octet-stream"
NOTHING = ""
"""Content type of a message without a payload."""

_PARAMETER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Message:
    """One kind of message.

    Attributes:
        kind: The type of its payload; None where a payload is no struct.
        name: Of the message and of its schema; that of the type if empty.
        schema: JSON Schema of a payload that has no type of its own.
        summary: In one line; from the type's docstring if empty.
        content_type: How the payload is written.
        headers: Names in `headers.HEADERS`.
        example: Fields that the example has beside those that it needs, or other values of them.
        correlated_by: The field of the payload by which answers and facts are put to it.
    """

    kind: type | None = None
    name: str = ""
    schema: Mapping[str, Any] = field(default_factory=dict)
    summary: str = ""
    content_type: str = JSON
    headers: tuple[str, ...] = ()
    example: Mapping[str, Any] = field(default_factory=dict)
    correlated_by: str = ""

    @property
    def key(self) -> str:
        """Its name in the document."""
        return self.name or (self.kind.__name__ if self.kind else "")


@dataclass(frozen=True)
class Channel:
    """A family of subjects.

    Attributes:
        name: Of the channel in the document.
        address: The subjects, with parameters in braces.
        messages: What is said. Where the last parameter of the address has names, by name: on a
            subject that ends in one only that message is said.
        summary: In one line.
        description: What else there is to know.
        replies: What may answer; empty where nothing does.
        republished: NATS itself publishes here what others have published elsewhere.
        values: What parameters can be, where that is known.
    """

    name: str
    address: str
    messages: Mapping[str, Message]
    summary: str
    description: str = ""
    replies: tuple[Message, ...] = ()
    republished: bool = False
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names in the address, in their order."""
        return tuple(_PARAMETER.findall(self.address))

    @property
    def selector(self) -> str:
        """The parameter that says which message it is; empty if none does."""
        last = self.address.rpartition(".")[2]
        named = set(self.messages) != {self.messages[key].key for key in self.messages}
        return last[1:-1] if named and last.startswith("{") else ""

    @property
    def all_messages(self) -> tuple[Message, ...]:
        """What is said and answered."""
        return (*self.messages.values(), *self.replies)


def one(message: Message) -> dict[str, Message]:
    """Messages of a channel on which one kind is said."""
    return {message.key: message}


def covers(address: str, subject: str) -> dict[str, str] | None:
    """The parameters of a subject that has this address; None if it has another one."""
    parts, tokens = address.split("."), subject.split(".")
    if len(parts) != len(tokens):
        return None
    found = {}
    for part, token in zip(parts, tokens, strict=True):
        if part.startswith("{"):
            found[part[1:-1]] = token
        elif part != token:
            return None
    return found
