"""The nkeys of users: made, and checked when somebody brings his own."""

from __future__ import annotations

import base64
import binascii
import os

import nkeys

from runtime.errors import FatalError

_SEED_BYTES = 32
_KEY_BYTES = 35
_CHECKSUM_BYTES = 2


def new_seed() -> str:
    """The secret of a new user."""
    return str(nkeys.encode_seed(os.urandom(_SEED_BYTES), nkeys.PREFIX_BYTE_USER).decode())


def checked_public_key(public_key: str) -> str:
    """The key, if it is a user's public key.

    Raises:
        FatalError: It is none. A seed is not repeated in the message.
    """
    if public_key.startswith("S"):
        raise FatalError("that is a seed, not a public key: keep it, and give the key that is U...")
    try:
        raw = base64.b32decode(public_key)
    except (binascii.Error, ValueError) as error:
        raise FatalError(f"{public_key[:60]!r} is no public key of a user (U...)") from error
    body, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
    if (
        len(raw) != _KEY_BYTES
        or raw[0] != nkeys.PREFIX_BYTE_USER
        or nkeys.crc16_checksum(body) != checksum
    ):
        raise FatalError(f"{public_key[:60]!r} is no public key of a user (U...)")
    return public_key
