"""Messages of the door on the bus: what is encoded with our own types can be decoded again."""

from __future__ import annotations

import inspect
from typing import Any

import msgspec
import pytest

from schemas import requests
from schemas.codec import decoder, encode
from schemas.errors import MalformedMessageError
from schemas.ids import new_id
from schemas.requests import Request

KINDS = [
    kind
    for _, kind in inspect.getmembers(requests, inspect.isclass)
    if issubclass(kind, Request) and kind.__module__ == requests.__name__
]
NEEDED: dict[str, Any] = {
    "vm": {"image": "tiny"},
    "vm_id": str(new_id()),
    "patch": {"labels": {"a": None}},
    "operation_id": str(new_id()),
    "snapshot_id": str(new_id()),
    "peer_id": "globex",
    "start": "2026-01-01T00:00:00Z",
    "end": "2026-01-02T00:00:00Z",
    "vm_ids": [str(new_id())],
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_we_encode_is_understood(kind: type[Request]) -> None:
    """With every field at its default; a key or none; nothing that is no key."""
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    given = {name: NEEDED[name] for name, field in fields.items() if field.required}
    made = msgspec.convert(given, kind)
    decode = decoder(kind)
    assert decode(encode(made)) == made
    keyed = msgspec.structs.replace(made, idempotency_key="order-4711")
    assert decode(encode(keyed)) == keyed
    for wrong in ("a b", "a\n", "\n", "k" * 129):
        with pytest.raises(MalformedMessageError, match="idempotency_key"):
            decode(encode(msgspec.structs.replace(made, idempotency_key=wrong)))
