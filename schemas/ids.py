"""Ids and the tokens that subjects, keys and file names are made of.

A token is `[a-z0-9][a-z0-9-]{0,62}`: no dot, wildcard, slash or white space, so that it can
stand in a NATS subject, a KV key or a path as it is. Machine-made ids are UUIDv7: sortable in
time, 16 bytes on the wire (RFC 9562).
"""

from __future__ import annotations

import re
from typing import Annotated
from uuid import UUID

import msgspec
from uuid_utils import compat

from schemas.errors import InvalidIdError

# `$` alone would let a trailing newline pass in Python; the lookahead is valid ECMA 262 too,
# so the same pattern stands in JSON Schema.
TOKEN_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$(?!\n)"  # noqa: S105
_TOKEN = re.compile(r"[a-z0-9][a-z0-9-]{0,62}", re.ASCII)

_token_meta = msgspec.Meta(pattern=TOKEN_PATTERN, max_length=63)

CustomerId = Annotated[str, _token_meta]
HostId = Annotated[str, _token_meta]
PoolId = Annotated[str, _token_meta]
RegionId = Annotated[str, _token_meta]
ImageName = Annotated[str, _token_meta]
PricePlanId = Annotated[str, _token_meta]

RESERVED_CUSTOMERS = frozenset(
    {
        "admin", "agent", "batcher", "collector", "core", "customer", "gateway", "operator", "sys",
        "system",
    }
)  # fmt: skip
"""Names that no customer gets: in the audit or on the bus they are somebody else's."""

VmId = UUID
CommandId = UUID
EventId = UUID
RunId = UUID


def new_id() -> UUID:
    """A fresh UUIDv7."""
    return compat.uuid7()


def token(value: str) -> str:
    """Return `value` if it is a token.

    Raises:
        InvalidIdError: It is not; the message shows at most 80 characters of it.
    """
    if not _TOKEN.fullmatch(value):
        raise InvalidIdError(
            f"{value[:80]!r} is no valid id: 1 to 63 characters of a-z, 0-9 and '-', "
            "not starting with '-'"
        )
    return value


def parse_uuid(value: str) -> UUID:
    """Read a UUID in its canonical form: 36 characters, lower case.

    Raises:
        InvalidIdError: Any other text, other spellings of a UUID included, so that one thing
            has one name.
    """
    try:
        parsed = UUID(value)
    except ValueError:
        parsed = None
    if parsed is None or str(parsed) != value:
        raise InvalidIdError(f"{value[:80]!r} is no UUID in canonical form")
    return parsed
