"""Tokens in JWS compact form, taken apart strictly: one token has one spelling, and one meaning."""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn

MAX_TOKEN_BYTES = 8192
_MAX_HEADER_BYTES = 4096
_TYPES = frozenset({"jwt", "at+jwt", "application/jwt", "application/at+jwt"})
"""RFC 8725, section 3.11: a token made for something else, such as a logout, is no access token."""

_BASE64URL = re.compile(rb"[A-Za-z0-9_-]*")


class NotATokenError(ValueError):
    """The text is no token, or none that this service understands.

    Attributes:
        reason: Constant snake_case word for the log.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class CompactToken:
    """A token's parts. Nothing in it can be trusted before its signature is verified.

    Attributes:
        algorithm: What the header says.
        key_id: Likewise; None if it does not.
        signed: What the signature is of.
    """

    algorithm: str
    key_id: str | None
    payload: bytes
    signed: bytes
    signature: bytes


def parse(text: str) -> CompactToken:
    """Take a token apart.

    Keys that the header brings along or points to (`jwk`, `jku`, `x5c`, `x5u`) are never looked at.

    Raises:
        NotATokenError: The text is too long, malformed, of another type, or asks for an extension.
    """
    if len(text) > MAX_TOKEN_BYTES:
        raise NotATokenError("too_long")
    try:
        raw = text.encode("ascii")
    except UnicodeEncodeError:
        raise NotATokenError("not_ascii") from None
    parts = raw.split(b".")
    if len(parts) != 3 or len(parts[0]) > _MAX_HEADER_BYTES:
        raise NotATokenError("not_three_parts")
    header = json_object(base64url(parts[0]))
    if "crit" in header or "b64" in header:
        # RFC 7515, section 4.1.11: whoever does not understand an extension must refuse.
        raise NotATokenError("critical_extension")
    algorithm, key_id, kind = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
    if not isinstance(algorithm, str):
        raise NotATokenError("no_algorithm")
    if "kid" in header and not isinstance(key_id, str):
        raise NotATokenError("wrong_kid_type")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise NotATokenError("wrong_type")
    return CompactToken(
        algorithm=algorithm,
        key_id=key_id,
        payload=base64url(parts[1]),
        signed=raw[: len(parts[0]) + 1 + len(parts[1])],
        signature=base64url(parts[2]),
    )


def json_object(data: bytes) -> dict[str, Any]:
    """A JSON object in which no name comes twice, at any depth.

    RFC 7519, section 4, leaves it open which of two claims of a name counts. Two readers that
    differ in it are a hole.

    Raises:
        NotATokenError: It is something else.
    """
    try:
        # As text: of bytes the library would take UTF-16 and UTF-32 as well.
        found = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise NotATokenError("too_deep") from None
    except NotATokenError:
        raise
    except ValueError:
        raise NotATokenError("not_json") from None
    if not isinstance(found, dict):
        raise NotATokenError("no_object")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise NotATokenError("duplicate_name")
    return found


def _no_constant(_: str) -> NoReturn:
    raise NotATokenError("not_json")


def base64url(part: bytes) -> bytes:
    """Decode, strictly: no padding, no other alphabet, no bits beyond the last byte (RFC 7515, 2).

    Raises:
        NotATokenError: It is something else.
    """
    if not _BASE64URL.fullmatch(part):
        raise NotATokenError("bad_base64")
    try:
        data = base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4))
    except binascii.Error:
        raise NotATokenError("bad_base64") from None
    if base64.urlsafe_b64encode(data).rstrip(b"=") != part:
        raise NotATokenError("bad_base64")
    return data
