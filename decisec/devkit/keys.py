"""Keys to sign tokens with: made here, kept by whoever plays the issuer."""

from __future__ import annotations

import json
from typing import Any

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey

ALGORITHMS = ("EdDSA", "ES256", "RS256")
_RSA_BITS = 3072
_MIN_SECRET_BYTES = 32


class NotAKeyError(ValueError):
    """The file holds no key that tokens can be signed with. The message shows none of it."""


def generate(algorithm: str) -> dict[str, Any]:
    """A new private key as JWK; its `kid` is its thumbprint (RFC 7638)."""
    made: Key
    match algorithm:
        case "EdDSA":
            made = OKPKey.generate_key("Ed25519")
        case "ES256":
            made = ECKey.generate_key("P-256")
        case "RS256":
            made = RSAKey.generate_key(_RSA_BITS)
        case _:
            raise NotAKeyError(f"{algorithm}: take one of {', '.join(ALGORITHMS)}")
    named = {"kid": made.thumbprint(), "alg": algorithm, "use": "sig"}
    return {**made.as_dict(private=True), **named}


def public_of(private: dict[str, Any]) -> dict[str, Any]:
    """What everybody may know of a key that `generate` made."""
    secret = {"d", "p", "q", "dp", "dq", "qi"}
    return {name: value for name, value in private.items() if name not in secret}


def key_set(document: bytes | None, public: dict[str, Any]) -> bytes:
    """The key set with one more key.

    Args:
        document: The set so far, if there is one.
        public: Of the new key.

    Raises:
        NotAKeyError: The document is no key set.
    """
    found: dict[str, Any] = {"keys": []}
    if document is not None:
        try:
            found = json.loads(document)
            found["keys"] = [*found["keys"]]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise NotAKeyError("the file is no key set (JWKS)") from error
    found["keys"].append(public)
    return json.dumps(found, indent=2).encode() + b"\n"


def signing_key(data: bytes) -> tuple[str, str, Key]:
    """Algorithm, `kid` (empty for none) and key of a file: a private JWK, or a shared secret.

    Raises:
        NotAKeyError: It is neither.
    """
    try:
        entry = json.loads(data)
    except ValueError:
        entry = None
    if not isinstance(entry, dict):
        secret = data.strip()
        if len(secret) < _MIN_SECRET_BYTES or secret.startswith(b"-----BEGIN"):
            raise NotAKeyError(
                "the file holds neither a private key as JWK (`decisec token keygen` makes one) "
                f"nor a secret of at least {_MIN_SECRET_BYTES} bytes"
            )
        return "HS256", "", OctKey.import_key(secret)
    kinds: dict[str, tuple[str, type[RSAKey | ECKey | OKPKey]]] = {
        "RSA": ("RS256", RSAKey),
        "EC": ("ES256", ECKey),
        "OKP": ("EdDSA", OKPKey),
    }
    algorithm, kind = kinds.get(str(entry.get("kty")), ("", OKPKey))
    if not algorithm or "d" not in entry or not entry.get("kid"):
        raise NotAKeyError("the file holds no private RSA, EC or OKP key with a kid")
    try:
        return algorithm, str(entry["kid"]), kind.import_key(entry)
    except (JoseError, ValueError, TypeError, KeyError) as error:
        raise NotAKeyError(f"the file holds no whole {algorithm} key") from error
