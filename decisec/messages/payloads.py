"""JSON Schema of every payload, in the words of draft 7, which is what AsyncAPI 3.0 speaks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from decisec.messages.channel import Message
from schemas.frames import COLUMNS, ENRICHMENT_COLUMNS
from schemas.json_schema import components, inherited_words, split_docstring

REF = "#/components/schemas/{name}"

_COLUMNS = {column.name: column for column in (*COLUMNS, *ENRICHMENT_COLUMNS)}
_TUPLE = (
    "A msgpack array; the places may grow at the end. Columns are msgpack bin: one little-endian "
    "value per VM, one after the other. In JSON, as in the example, they are base64."
)


def schemas_of(messages: Iterable[Message]) -> dict[str, Any]:
    """All payloads and what they hold, by name: what stands under `components.schemas`."""
    listed = list(messages)
    kinds = {message.kind for message in listed if message.kind}
    kinds |= {message.schema["reply"] for message in listed if message.schema}
    found = {name: _draft_7(one) for name, one in components(kinds, REF).items()}
    for kind in kinds:
        if msgspec.inspect.type_info(kind).array_like:  # type: ignore[attr-defined]
            _name_places(kind, found[kind.__name__])
    for message in listed:
        if message.schema:
            found[message.key] = _with_one_field(message, found)
    for kind in {message.schema["reply"] for message in listed if message.schema}:
        del found[kind.__name__]
    return found


def _with_one_field(message: Message, found: Mapping[str, Any]) -> dict[str, Any]:
    """A reply of which this field is set, and no other."""
    field = message.schema["field"]
    schema = found[message.schema["reply"].__name__]["properties"][field]
    (value,) = (one for one in schema["anyOf"] if one != {"type": "null"})
    return {
        "title": message.key,
        "description": message.summary,
        "type": "object",
        "properties": {field: value},
        "required": [field],
    }


def _name_places(kind: type, schema: dict[str, Any]) -> None:
    """Say what each place of an array is."""
    words = inherited_words(kind) | split_docstring(kind.__doc__ or "")[1]
    fields: tuple[str, ...] = getattr(kind, "__struct_fields__")  # noqa: B009
    for name, place in zip(fields, schema["items"], strict=True):
        place["title"] = name
        if name in words:
            place["description"] = words[name]
        if name in _COLUMNS:
            column = _COLUMNS[name]
            place["description"] = f"Column: {column.width} bytes per VM, `{column.dtype}`"
    schema["description"] = f"{schema['description']} {_TUPLE}"


def _draft_7(value: Any) -> Any:
    """The same in draft 7: tuples by `items`, nothing beside a `$ref`, no discriminators."""
    match value:
        case dict():
            found = {
                "items" if word == "prefixItems" else word: _draft_7(one)
                for word, one in value.items()
                if word != "discriminator"
            }
            if "$ref" in found and len(found) > 1:
                found["allOf"] = [{"$ref": found.pop("$ref")}]
            return found
        case list():
            return [_draft_7(one) for one in value]
    return value


def json_form(payload: Any) -> Any:
    """A payload as its schema describes it: arrays as arrays, bytes as base64."""
    return msgspec.to_builtins(payload)
