"""JSON Web Key Sets (RFC 7517), read strictly: which keys may verify a token, and for what.

A document that is none is refused as a whole. A key that is of no use here (of another kind, for
encryption, too weak) is left out with a word, as the RFC asks for: issuers have such, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey

from gateway.compact import base64url
from gateway.keys import PinnedKey

MAX_DOCUMENT_BYTES = 262_144
MAX_KEYS = 100
MAX_KID = 255
MIN_RSA_BITS = 2048
MAX_RSA_BITS = 8192
_MAX_RSA_EXPONENT = 2**32

_ALGORITHM_OF: Mapping[tuple[str, str], str] = {
    ("RSA", ""): "RS256",
    ("EC", "P-256"): "ES256",
    ("OKP", "Ed25519"): "EdDSA",
}
"""Kind and curve to the only algorithm that such a key is for."""

_NAMES = ("kty", "kid", "crv", "n", "e", "x", "y")
_PRIVATE = ("d", "p", "q", "dp", "dq", "qi", "oth", "k")

KeyName = tuple[str, str]
"""`kid` and algorithm: some issuers have a key of each kind under one `kid`."""


class MalformedKeysError(ValueError):
    """The bytes are no key set."""


class _UnusableError(ValueError):
    """A key is not for us; a constant snake_case word says why."""


@dataclass(frozen=True, slots=True)
class KeySet:
    """The usable keys of a document.

    Attributes:
        keys: By `kid` and algorithm.
        left_out: Why the other keys of the document are of no use, each a `kid` and a word.
        material: What the keys are made of; sets with equal ones verify the same tokens.
    """

    keys: Mapping[KeyName, PinnedKey]
    left_out: tuple[tuple[str, str], ...] = ()
    material: Mapping[KeyName, Mapping[str, str]] = field(default_factory=dict)

    @property
    def ids(self) -> frozenset[str]:
        """The `kid`s."""
        return frozenset(kid for kid, _ in self.keys)


def parse_keys(data: bytes) -> KeySet:
    """Read a document.

    Raises:
        MalformedKeysError: It is none, or too large.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise MalformedKeysError(f"the document is larger than {MAX_DOCUMENT_BYTES} bytes")
    try:
        document = msgspec.json.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise MalformedKeysError(f"the document is not JSON: {str(error)[:100]}") from error
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise MalformedKeysError("the document has no list `keys`")
    if len(entries) > MAX_KEYS:
        raise MalformedKeysError(f"the document has more than {MAX_KEYS} keys")
    keys: dict[KeyName, PinnedKey] = {}
    material: dict[KeyName, dict[str, str]] = {}
    left_out: list[tuple[str, str]] = []
    ambiguous: set[KeyName] = set()
    for entry in entries:
        kid = entry.get("kid") if isinstance(entry, dict) else None
        try:
            name, key, made_of = _usable(entry)
        except _UnusableError as error:
            left_out.append((str(kid)[:MAX_KID], str(error)))
            continue
        if material.setdefault(name, made_of) != made_of:
            ambiguous.add(name)
        keys[name] = key
    for name in ambiguous:
        # Whichever of them were taken, it would be a guess.
        del keys[name], material[name]
        left_out.append((name[0], "ambiguous"))
    return KeySet(keys, tuple(left_out), material)


def _usable(entry: Any) -> tuple[KeyName, PinnedKey, dict[str, str]]:
    """A key that may verify tokens, from its JWK."""
    if not isinstance(entry, dict):
        raise _UnusableError("no_object")
    made_of = {name: entry[name] for name in _NAMES if name in entry}
    if not all(isinstance(value, str) for value in made_of.values()):
        raise _UnusableError("wrong_type")
    kid = made_of.get("kid", "")
    if not 1 <= len(kid) <= MAX_KID or not kid.isprintable():
        raise _UnusableError("no_kid")
    algorithm = _ALGORITHM_OF.get((made_of.get("kty", ""), made_of.get("crv", "")))
    if algorithm is None:
        raise _UnusableError("other_kind")
    if entry.get("alg", algorithm) != algorithm:
        raise _UnusableError("other_algorithm")
    operations = entry.get("key_ops", ["verify"])
    if entry.get("use", "sig") != "sig" or not (
        isinstance(operations, list) and "verify" in operations
    ):
        raise _UnusableError("other_use")
    if any(name in entry for name in _PRIVATE):
        # Whoever can read the document can sign with it.
        raise _UnusableError("private")
    return (kid, algorithm), PinnedKey(algorithm, _key(made_of)), made_of


def _key(made_of: dict[str, str]) -> Key:
    # Only what the key is made of: nothing else in the document can change what the library does.
    bare: dict[str, str | list[str]] = {
        name: value for name, value in made_of.items() if name != "kid"
    }
    try:
        match bare["kty"]:
            case "RSA":
                _check_strength(made_of["n"], made_of["e"])
                return RSAKey.import_key(bare)
            case "EC":
                return ECKey.import_key(bare)
            case _:
                return OKPKey.import_key(bare)
    except _UnusableError:
        raise
    except Exception as error:
        raise _UnusableError("malformed") from error


def _check_strength(modulus: str, exponent: str) -> None:
    # Before the library sees them: it warns of weak keys, and takes them.
    n, e = (int.from_bytes(base64url(text.encode())) for text in (modulus, exponent))
    if not MIN_RSA_BITS <= n.bit_length() <= MAX_RSA_BITS:
        raise _UnusableError("wrong_size")
    if not 3 <= e < _MAX_RSA_EXPONENT:
        # A huge exponent makes each check slow.
        raise _UnusableError("wrong_exponent")
