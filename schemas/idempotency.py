"""Values of the bucket `idempotency_keys`: requests that came with a key, and their answers."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Annotated, Final
from uuid import UUID

import msgspec

from schemas.codec import decoder
from schemas.ids import token
from schemas.vms import Timestamp

IDEMPOTENCY_HEADER: Final = "Idempotency-Key"
REPLAYED_HEADER: Final = "Idempotency-Replayed"
"""`true` in an answer that is the repeat of an earlier one."""

MAX_KEY: Final = 128
KEY_PATTERN: Final = r"^[\x21-\x7e]+$(?!\n)"
"""Printable ASCII without spaces."""

IdempotencyKey = Annotated[str, msgspec.Meta(pattern=KEY_PATTERN, max_length=MAX_KEY)]


class KeptAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer as it was given; over HTTP with status and headers."""

    status: int
    body: bytes
    media_type: str = "application/json"
    headers: dict[str, str] = msgspec.field(default_factory=dict)


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A request that was begun under a key.

    Attributes:
        request: Digest of what was asked: door, route and body.
        seed: What the ids of everything that the request makes follow from.
        until: Before this the gateway that has it is still at work; afterwards another may go on.
        answer: None as long as there is none.
    """

    request: str
    seed: UUID
    until: Timestamp
    answer: KeptAnswer | None = None


def idempotency_entry(customer_id: str, key: str) -> str:
    """Key in the bucket: `<customer>.<digest of the caller's key>`.

    Args:
        customer_id: Empty for an operator who acts for no customer.
        key: The caller's.
    """
    # No customer can have this name.
    owner = token(customer_id) if customer_id else "_operators"
    return f"{owner}.{blake2b(key.encode(), digest_size=16).hexdigest()}"


decode_key_record: Callable[[bytes], KeyRecord] = decoder(KeyRecord)
