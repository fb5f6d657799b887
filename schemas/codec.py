"""JSON for control messages: readable with any NATS tool, validated as it is decoded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from schemas.errors import MalformedMessageError

_encoder = msgspec.json.Encoder(order="deterministic")


def encode(message: msgspec.Struct) -> bytes:
    """The message as JSON; field order is stable, so equal messages are equal bytes."""
    return _encoder.encode(message)


def decoder(kind: Any) -> Callable[[bytes], Any]:
    """A function that decodes JSON bytes into `kind` and raises only MalformedMessageError.

    Args:
        kind: A Struct type or a tagged union of them. Unknown fields are ignored, so an old
            reader reads a newer message.
    """
    inner = msgspec.json.Decoder(kind)

    def decode(data: bytes) -> Any:
        try:
            return inner.decode(data)
        except msgspec.ValidationError as error:
            raise MalformedMessageError("invalid_message", str(error)) from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise MalformedMessageError("not_json", str(error)) from error

    return decode
