"""Where a list goes on: opaque to whoever holds it, and good for the query that it came from.

A cursor names the last thing that was looked at, not a number of things. So it stays right when
others come and go: nothing is told twice or left out for that.
"""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import blake2b
from typing import Annotated
from uuid import UUID

import msgspec

from gateway.errors import RefusedError
from schemas.api import FieldProblem
from schemas.errors import ErrorCode
from schemas.subjects import parse_vm_key

MAX_CURSOR_CHARS = 512
_NO_ID = UUID(int=0)


class Position(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A place in an order: by name and then id, or by id alone, with an empty name."""

    name: Annotated[str, msgspec.Meta(max_length=63)]
    item_id: UUID

    @classmethod
    def of_key(cls, key: str) -> Position:
        """The place of a record, by its key `<customer>.<vm>`."""
        customer_id, vm_id = parse_vm_key(key)
        return cls(customer_id, vm_id)

    @property
    def key(self) -> tuple[str, str]:
        """What is compared: ids sort as text as they do as numbers."""
        return self.name, str(self.item_id)


def name_only(name: str) -> Position:
    """A place in an order by names that are unique."""
    return Position(name, _NO_ID)


class _Cursor(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    query: str
    position: Position


_decoder = msgspec.json.Decoder(_Cursor)


def digest(*query: object) -> str:
    """A short word for a query; the same in all gateways."""
    return blake2b(repr(query).encode(), digest_size=6).hexdigest()


def seal(query: str, position: Position) -> str:
    """The cursor of a query's next page."""
    cursor = msgspec.json.encode(_Cursor(query, position))
    return urlsafe_b64encode(cursor).decode().rstrip("=")


def unseal(query: str, text: str) -> Position | None:
    """Where the next page begins; None for the first one.

    Raises:
        RefusedError: BAD_REQUEST. It is no cursor, or another query's.
    """
    if not text:
        return None
    if len(text) > MAX_CURSOR_CHARS:
        raise _refusal("this is no cursor; it is too long")
    try:
        padded = text + "=" * (-len(text) % 4)
        cursor = _decoder.decode(urlsafe_b64decode(padded.encode("ascii")))
    except (ValueError, binascii.Error, msgspec.DecodeError, RecursionError):
        raise _refusal("this is no cursor; take `next_cursor` of the page before") from None
    if cursor.query != query:
        raise _refusal(
            "this cursor is of another query; ask with the filters and the sort that it came from"
        )
    return cursor.position


def _refusal(message: str) -> RefusedError:
    return RefusedError(
        ErrorCode.BAD_REQUEST,
        f"cursor: {message}",
        fields=(FieldProblem(field="cursor", message=message),),
    )
