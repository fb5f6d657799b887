"""Development tokens: for a gateway that runs with a shared key, or with a key set of one's own."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable
from typing import Any

from joserfc import jwt
from joserfc.errors import SecurityWarning

from decisec.devkit.keys import signing_key
from schemas.ids import new_id

ALL_SCOPES = ("vms:read", "vms:write", "usage:read")
"""Of a customer."""

ADMIN = "admin"
"""Scope of operators."""

ISSUER = "decisec-dev"
AUDIENCE = "decisec"


def mint(
    key: bytes,
    customer: str | None,
    scopes: Iterable[str] = ALL_SCOPES,
    ttl_s: int = 3600,
    issuer: str = ISSUER,
    audience: str = AUDIENCE,
    subject: str = "developer",
) -> str:
    """A signed token.

    Args:
        key: The gateway's development key, at least 32 bytes; or a private key as JWK.
        customer: Customer id; None for an operator without one.
        scopes: What the token may be used for.
        ttl_s: Seconds until it expires.
        issuer: What the gateway expects as `iss`.
        audience: What the gateway expects as `aud`.
        subject: Who the token stands for; appears in operations as `requested_by`.

    Raises:
        NotAKeyError: It is neither.
    """
    algorithm, key_id, private = signing_key(key)
    now_s = int(time.time())
    claims: dict[str, Any] = {
        "iss": issuer,
        "aud": audience,
        "sub": subject,
        "jti": str(new_id()),
        "scope": " ".join(scopes),
        "iat": now_s,
        "nbf": now_s,
        "exp": now_s + ttl_s,
    }
    if customer is not None:
        claims["customer"] = customer
    header = {"alg": algorithm} | ({"kid": key_id} if key_id else {})
    with warnings.catch_warnings():
        # RFC 9864 has another name for EdDSA, which few issuers use yet.
        warnings.simplefilter("ignore", SecurityWarning)
        return jwt.encode(header, claims, private, algorithms=[algorithm])
