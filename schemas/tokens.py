"""Tokens that are revoked: values and keys of bucket `revoked_tokens`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Final

import msgspec

from schemas.codec import decoder
from schemas.ids import token
from schemas.vms import Timestamp

REVOKED_TOKENS: Final = "revoked_tokens"

MAX_TOKEN_LIFETIME_S: Final = 2_592_000
"""No gateway takes a token that lives longer than 30 days,"""

REVOCATION_KEPT_S: Final = 2_678_400
"""so that a revocation, kept for 31, is no longer needed when it goes. The bucket's TTL."""

_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


class RevokedBy(StrEnum):
    """What a revocation names."""

    JTI = "jti"
    SUBJECT = "subject"
    CUSTOMER = "customer"


class Revocation(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens that are not taken any more, however good they are otherwise.

    Attributes:
        by: What `value` is.
        value: A token's `jti`, or whose tokens: a subject or a customer.
        issued_before: Only tokens issued before that; None for a token by its `jti`.
        reason: Why, for people.
        requested_by: Who says to have done it.
    """

    by: RevokedBy
    value: _Text
    issued_before: Timestamp | None = None
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    requested_by: Annotated[str, msgspec.Meta(max_length=255)]
    revoked_at: Timestamp

    @property
    def key(self) -> str:
        """Where it stands."""
        return _KEY_OF[self.by](self.value)

    def covers(self, issued_at_s: float) -> bool:
        """Whether a token that it names by its key is among those revoked."""
        return self.issued_before is None or issued_at_s < self.issued_before.timestamp()


def jti_key(jti: str) -> str:
    """`jti.<hash>`: an issuer may put any character into it."""
    return f"jti.{_hash(jti)}"


def subject_key(subject: str) -> str:
    """`subject.<hash>`."""
    return f"subject.{_hash(subject)}"


def customer_key(customer_id: str) -> str:
    """`customer.<customer>`.

    Raises:
        InvalidIdError: It is none.
    """
    return f"customer.{token(customer_id)}"


def _hash(text: str) -> str:
    # A lone surrogate, which JSON can spell, is no UTF-8.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


_KEY_OF = {
    RevokedBy.JTI: jti_key,
    RevokedBy.SUBJECT: subject_key,
    RevokedBy.CUSTOMER: customer_key,
}

decode_revocation: Callable[[bytes], Revocation] = decoder(Revocation)
