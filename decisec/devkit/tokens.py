"""Development tokens: HS256, for a gateway that runs with a shared key."""

from __future__ import annotations

import time
from collections.abc import Iterable

from joserfc import jwt
from joserfc.jwk import OctKey

ALL_SCOPES = ("vms:read", "vms:write", "usage:read")
ISSUER = "decisec-dev"
AUDIENCE = "decisec"


def mint(
    key: bytes,
    customer: str,
    scopes: Iterable[str] = ALL_SCOPES,
    ttl_s: int = 3600,
    issuer: str = ISSUER,
    audience: str = AUDIENCE,
    subject: str = "developer",
) -> str:
    """A signed token.

    Args:
        key: The gateway's development key, at least 32 bytes.
        customer: Customer id.
        scopes: What the token may be used for.
        ttl_s: Seconds until it expires.
        issuer: What the gateway expects as `iss`.
        audience: What the gateway expects as `aud`.
        subject: Who the token stands for; appears in operations as `requested_by`.
    """
    now_s = int(time.time())
    claims = {
        "iss": issuer,
        "aud": audience,
        "sub": subject,
        "customer": customer,
        "scope": " ".join(scopes),
        "iat": now_s,
        "nbf": now_s,
        "exp": now_s + ttl_s,
    }
    return jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(key), algorithms=["HS256"])
