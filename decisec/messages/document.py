"""The AsyncAPI 3.0 document of the bus: `docs/asyncapi.json` is its copy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from decisec.bus.roles import shipped
from decisec.messages.catalog import CHANNELS, messages
from decisec.messages.channel import JSON, NOTHING, Channel, Message
from decisec.messages.examples import example_of
from decisec.messages.grants import Grant, Grants
from decisec.messages.headers import HEADERS, PARAMETERS, REQUIRED
from decisec.messages.payloads import REF, schemas_of
from runtime.streams import declared
from schemas.json_schema import split_docstring

VERSION = "1"
"""Within it changes are additions: docs/api-policy.md."""

HOW = "x-decisec-how"
"""In an operation: by which right the role has it."""
STREAM = "x-decisec-stream"
BUCKET = "x-decisec-bucket"

_ABOUT = (
    "Everything between two parts of decisec is a message on NATS. `vm.req.<customer>.<verb>` is "
    "the HTTP API on the bus, and `vm.evt.<customer>.>` tells what happens; the rest is between "
    "decisec's own services and its operators. Operations say what each role may do, as the "
    "server's permissions have it; what NATS itself says (`$JS`, `$SYS`, inboxes) is not listed. "
    "Unknown fields are to be ignored."
)
_SERVER = (
    "TLS, and an nkey from `decisec bus credentials issue`. Answers come to inboxes that begin "
    "with `_INBOX.<public key>`."
)


def document() -> dict[str, Any]:
    """The document of this version."""
    grants = Grants(shipped(), declared())
    known = messages()
    schemas = schemas_of(known.values())
    found: dict[str, Any] = {
        "asyncapi": "3.0.0",
        "info": {"title": "decisec on NATS", "version": VERSION, "description": _ABOUT},
        "defaultContentType": JSON,
        "servers": {
            "bus": {"host": "bus.example:4222", "protocol": "nats", "description": _SERVER}
        },
        "channels": {},
        "operations": {},
        "components": {
            "schemas": schemas,
            "messages": {key: _message(one, schemas) for key, one in known.items()},
            "parameters": {name: _parameter(name, ()) for name in sorted(_shared())},
        },
    }
    for channel in CHANNELS:
        found["channels"][channel.name] = _channel(channel, grants)
        if channel.replies:
            found["channels"][f"{channel.name}Reply"] = _replies(channel)
        found["operations"] |= _operations(channel, grants)
    return found


def _shared() -> set[str]:
    """Parameters that are the same everywhere."""
    return {name for one in CHANNELS for name in one.parameters if not _values(one, name)}


def _values(channel: Channel, parameter: str) -> tuple[str, ...]:
    if parameter == channel.selector:
        return tuple(channel.messages)
    return channel.values.get(parameter, ())


def _parameter(name: str, values: Iterable[str]) -> dict[str, Any]:
    words, example = PARAMETERS[name]
    allowed = list(values)
    if allowed:
        return {"description": words, "enum": allowed}
    return {"description": words, "examples": [example]}


def _channel(channel: Channel, grants: Grants) -> dict[str, Any]:
    found: dict[str, Any] = {
        "address": channel.address,
        "title": channel.address,
        "summary": channel.summary,
        "messages": {key: _ref("messages", one.key) for key, one in channel.messages.items()},
    }
    if channel.description:
        found["description"] = channel.description
    if channel.parameters:
        found["parameters"] = {
            name: _parameter(name, values) if (values := _values(channel, name))
            else _ref("parameters", name)
            for name in channel.parameters
        }  # fmt: skip
    if stream := grants.stream_of(channel):
        found[STREAM] = stream
    if bucket := grants.bucket_of(channel):
        found[BUCKET] = bucket
    return found


def _replies(channel: Channel) -> dict[str, Any]:
    return {
        "address": None,
        "title": f"Answers on {channel.address}",
        "summary": "On the inbox that the request names",
        "messages": {one.key: _ref("messages", one.key) for one in channel.replies},
    }


def _operations(channel: Channel, grants: Grants) -> dict[str, Any]:
    found: dict[str, Any] = {}
    name = channel.name[0].upper() + channel.name[1:]
    for action, granted in (
        ("send", grants.senders(channel)),
        ("receive", grants.receivers(channel)),
    ):
        for role in dict.fromkeys(grant.role for grant in granted):
            mine = [grant for grant in granted if grant.role == role]
            verb = "Sends" if action == "send" else "Receives"
            found[f"{role}{verb}{name}"] = _operation(channel, action, role, mine)
    return found


def _operation(channel: Channel, action: str, role: str, mine: list[Grant]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel.name}"},
        "summary": channel.summary,
        "tags": [{"name": role}],
        HOW: list(dict.fromkeys(map(_how, mine))),
    }
    only = {dict(grant.only).get(channel.selector, "") for grant in mine}
    if "" not in only:
        found["messages"] = [
            {"$ref": f"#/channels/{channel.name}/messages/{key}"} for key in sorted(only)
        ]
    if channel.replies and (action == "send" or any(grant.answers for grant in mine)):
        reply = f"#/channels/{channel.name}Reply"
        found["reply"] = {
            "channel": {"$ref": reply},
            "messages": [{"$ref": f"{reply}/messages/{one.key}"} for one in channel.replies],
        }
    return found


def _how(grant: Grant) -> str:
    only = "".join(f", only {value}" for _, value in grant.only)
    return f"{grant.how}{', its own' if grant.own else ''}{only}"


def _message(message: Message, schemas: Mapping[str, Any]) -> dict[str, Any]:
    words = split_docstring(getattr(message.kind, "__doc__", None) or "")[0]
    found: dict[str, Any] = {
        "name": message.key,
        "title": message.key,
        "summary": message.summary or _first_sentence(words),
    }
    if words and words != found["summary"]:
        found["description"] = words
    if message.headers:
        found["headers"] = _headers(message.headers)
    if message.content_type != NOTHING:
        found["contentType"] = message.content_type
    if message.correlated_by:
        found["correlationId"] = {"location": f"$message.payload#/{message.correlated_by}"}
    payload = example_of(message, schemas)
    if payload is not None:
        name = message.key if message.schema else message.kind.__name__  # type: ignore[union-attr]
        found["payload"] = {"$ref": REF.format(name=name)}
        found["examples"] = [{"name": message.key[0].lower() + message.key[1:], "payload": payload}]
    elif message.content_type == NOTHING:
        found["payload"] = {"type": "string", "maxLength": 0, "description": "Nothing"}
    else:
        found["payload"] = {"type": "string", "format": "binary", "description": "Any bytes"}
    return found


def _first_sentence(words: str) -> str:
    first, dot, _ = words.partition(". ")
    return first + dot.strip()


def _headers(names: Iterable[str]) -> dict[str, Any]:
    listed = list(dict.fromkeys(names))
    found: dict[str, Any] = {
        "type": "object",
        "properties": {name: dict(HEADERS[name]) for name in listed},
    }
    if needed := [name for name in listed if name in REQUIRED]:
        found["required"] = needed
    return found


def _ref(kind: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/components/{kind}/{name}"}
