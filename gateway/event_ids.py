"""Places in the stream of events as customers see them: opaque, and good for one customer only.

A sequence of the stream would tell how many events all customers have together. So an id is the
sequence encrypted under a key of the customer's own, with its own authentication as the nonce
(SIV): the same place always has the same id, and an id that was made up or belongs to somebody
else names no place. The secret behind the keys is shared by all gateways, so that a reader goes on
at another one; it is bound to the stream, because another one's sequences mean nothing.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets

from runtime.buckets import Bucket, RevisionConflictError
from runtime.bus import Bus
from runtime.clock import utc_now
from runtime.errors import TransientError
from schemas.secrets import SharedSecret, decode_shared_secret
from schemas.subjects import SECRETS

_KEY = "event-ids"
_TAG_BYTES = 12
_SEQUENCE_BYTES = 8
_ENCODED = (_TAG_BYTES + _SEQUENCE_BYTES) * 8 // 6 + 1


class UnknownPlaceError(ValueError):
    """The id names no place of this customer's in this stream."""


class EventIds:
    """Turns sequences of one stream into ids and back.

    Args:
        secret: What all gateways share.
        born: When the stream was made.
    """

    def __init__(self, secret: bytes, born: str) -> None:
        self._secret = hashlib.sha256(secret + born.encode()).digest()

    def seal(self, customer_id: str, sequence: int) -> str:
        """The id of a place."""
        plain = sequence.to_bytes(_SEQUENCE_BYTES, "big")
        tag = self._tag(customer_id, plain)
        return _text(tag + self._masked(customer_id, tag, plain))

    def open(self, customer_id: str, text: str) -> int:
        """The sequence behind an id.

        Raises:
            UnknownPlaceError: It is none of this customer's.
        """
        sealed = _bytes(text)
        tag, hidden = sealed[:_TAG_BYTES], sealed[_TAG_BYTES:]
        plain = self._masked(customer_id, tag, hidden)
        if len(hidden) != _SEQUENCE_BYTES or not hmac.compare_digest(
            tag, self._tag(customer_id, plain)
        ):
            raise UnknownPlaceError("not an id of this stream of events")
        return int.from_bytes(plain, "big")

    def _tag(self, customer_id: str, plain: bytes) -> bytes:
        return self._mac(b"tag", customer_id, plain)[:_TAG_BYTES]

    def _masked(self, customer_id: str, tag: bytes, data: bytes) -> bytes:
        mask = self._mac(b"mask", customer_id, tag)
        return bytes(a ^ b for a, b in zip(data, mask, strict=False))

    def _mac(self, use: bytes, customer_id: str, data: bytes) -> bytes:
        message = b"\0".join((use, customer_id.encode(), data))
        return hmac.digest(self._secret, message, "sha256")


async def shared_secret(bus: Bus, key: str = _KEY) -> bytes:
    """A secret of all gateways; made by the first that asks.

    Args:
        bus: Where it is.
        key: What it is for.

    Raises:
        TransientError: The bucket cannot be reached, or is not there yet.
    """
    bucket = Bucket(bus, SECRETS, decode_shared_secret)
    if (entry := await bucket.get(key)) is not None:
        return entry.value.secret
    made = SharedSecret(secret=secrets.token_bytes(32), created_at=utc_now())
    try:
        await bucket.create(key, made)
    except RevisionConflictError:
        entry = await bucket.get(key)
        if entry is None:
            raise TransientError("the secret of the gateways was there and is gone") from None
        return entry.value.secret
    return made.secret


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    if len(text) != _ENCODED:
        raise UnknownPlaceError("not an id of this stream of events")
    try:
        found = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError as error:
        raise UnknownPlaceError("not an id of this stream of events") from error
    if _text(found) != text:
        raise UnknownPlaceError("not an id of this stream of events")
    return found
