"""Key sets: which keys of a document are taken, for what, and what is refused as a whole."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import ECKey, OctKey, OKPKey

from gateway.jwks import MAX_DOCUMENT_BYTES, MAX_KEYS, MalformedKeysError, parse_keys
from tests.support.issuer import ALGORITHMS, SigningKey, base64url, document, key_of

RSA, EC, ED = (SigningKey(algorithm, algorithm.lower()) for algorithm in ALGORITHMS)


@pytest.mark.parametrize("key", [RSA, EC, ED], ids=ALGORITHMS)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"alg": None, "use": None},
        {"use": None, "key_ops": ["verify"]},
        {"x5c": ["not a certificate"], "x5u": 7, "newer": {"member": 1}},
    ],
)
def test_a_key_is_pinned_to_the_algorithm_of_its_kind(
    key: SigningKey, changes: dict[str, Any]
) -> None:
    """Whether the document says so or not; members that change nothing are not looked at."""
    found = parse_keys(document(key.jwk(**changes)))
    assert {name: pinned.algorithm for name, pinned in found.keys.items()} == {
        (key.kid, key.algorithm): key.algorithm
    }
    assert found.left_out == ()


def unusable() -> dict[str, tuple[Any, str]]:
    """Entries of `keys` that are left out, and with which word."""
    weak = base64url(bytes([0x80]) + bytes(126) + bytes([1])).decode()
    huge = base64url(bytes([0x80]) + bytes(1100) + bytes([1])).decode()
    return {
        "a text": ("key", "no_object"),
        "a list": ([], "no_object"),
        "nothing": (None, "no_object"),
        "empty": ({}, "no_kid"),
        "kid missing": (RSA.jwk(kid=None), "no_kid"),
        "kid empty": (RSA.jwk(kid=""), "no_kid"),
        "kid a number": (RSA.jwk(kid=1), "wrong_type"),
        "kid with a line break": (RSA.jwk(kid="a\nb"), "no_kid"),
        "kid too long": (RSA.jwk(kid="k" * 256), "no_kid"),
        "kind missing": (RSA.jwk(kty=None), "other_kind"),
        "kind of no kind": (RSA.jwk(kty="XXX"), "other_kind"),
        "a shared secret": (
            {**OctKey.generate_key(256).as_dict(private=True), "kid": "s", "alg": "HS256"},
            "other_kind",
        ),
        "a secret dressed as RSA": ({**RSA.jwk(), "k": "c2VjcmV0"}, "private"),
        "P-384": ({**ECKey.generate_key("P-384").as_dict(private=False), "kid": "p"}, "other_kind"),
        "Ed448": ({**OKPKey.generate_key("Ed448").as_dict(private=False), "kid": "e"},
                  "other_kind"),
        "X25519": ({**OKPKey.generate_key("X25519").as_dict(private=False), "kid": "x"},
                   "other_kind"),
        "RS512": (RSA.jwk(alg="RS512"), "other_algorithm"),
        "PS256": (RSA.jwk(alg="PS256"), "other_algorithm"),
        "RSA for HS256": (RSA.jwk(alg="HS256"), "other_algorithm"),
        "RSA for none": (RSA.jwk(alg="none"), "other_algorithm"),
        "EC for EdDSA": (EC.jwk(alg="EdDSA"), "other_algorithm"),
        "algorithm a list": (RSA.jwk(alg=["RS256"]), "other_algorithm"),
        "for encryption": (RSA.jwk(use="enc"), "other_use"),
        "use of no use": (RSA.jwk(use=[]), "other_use"),
        "to sign only": (RSA.jwk(use=None, key_ops=["sign"]), "other_use"),
        "operations a text": (RSA.jwk(key_ops="verify"), "other_use"),
        "private": (
            {**key_of("EdDSA").as_dict(private=True), "kid": "p", "use": "sig"},
            "private",
        ),
        "too short": (RSA.jwk(n=weak), "wrong_size"),
        "too long": (RSA.jwk(n=huge), "wrong_size"),
        "exponent one": (RSA.jwk(e="AQ"), "wrong_exponent"),
        "huge exponent": (RSA.jwk(e="AQAAAAE"), "wrong_exponent"),
        "modulus missing": (RSA.jwk(n=None), "malformed"),
        "modulus a number": (RSA.jwk(n=7), "wrong_type"),
        "modulus no base64": (RSA.jwk(n="%%%"), "malformed"),
        "not on the curve": (EC.jwk(x=EC.jwk()["y"]), "malformed"),
        "point of another size": (ED.jwk(x="AAAA"), "malformed"),
    }  # fmt: skip


@pytest.mark.parametrize("what", sorted(unusable()))
def test_a_key_that_is_of_no_use_is_left_out_with_a_word(what: str) -> None:
    """The keys beside it serve."""
    entry, word = unusable()[what]
    body = json.dumps({"keys": [entry, ED.jwk()]}).encode()
    found = parse_keys(body)
    assert [why for _, why in found.left_out] == [word]
    assert set(found.keys) == {("eddsa", "EdDSA")}


def test_one_kid_may_name_a_key_of_each_kind_but_not_two_of_one() -> None:
    """Which of two is meant could only be guessed; the same one twice is one."""
    kinds = [SigningKey(algorithm, "k") for algorithm in ALGORITHMS]
    assert len(parse_keys(document(*kinds, *kinds)).keys) == 3
    found = parse_keys(document(*kinds, SigningKey("EdDSA", "k", number=1)))
    assert set(found.keys) == {("k", "RS256"), ("k", "ES256")}
    assert found.left_out == (("k", "ambiguous"),)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"keys"',
        b"{}",
        b'{"keys": {}}',
        b'{"keys": null}',
        b"<html>Bad gateway</html>",
        b"\xff\xfe",
        b'{"keys": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"keys": [' + b" " * MAX_DOCUMENT_BYTES + b"]}",
        json.dumps({"keys": [{}] * (MAX_KEYS + 1)}).encode(),
    ],
    ids=lambda body: repr(body[:24]),
)
def test_what_is_no_key_set_is_refused_as_a_whole(body: bytes) -> None:
    """Broken, of another shape, too deep, too large."""
    with pytest.raises(MalformedKeysError):
        parse_keys(body)


def test_a_set_without_keys_is_a_set() -> None:
    """It is what the issuer says; that nothing can be verified then is for others to tell."""
    assert parse_keys(b'{"keys": []}').keys == {}


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_else(body: bytes) -> None:
    """Garbage is malformed, or holds no key."""
    with suppress(MalformedKeysError):
        assert parse_keys(body).keys == {}


@given(
    st.sampled_from([RSA, EC, ED]),
    st.dictionaries(
        st.sampled_from(["kty", "kid", "alg", "use", "key_ops", "crv", "n", "e", "x", "y", "d"]),
        _json,
        min_size=1,
        max_size=3,
    ),
)
def test_no_member_raises_anything_or_changes_the_algorithm(
    key: SigningKey, changes: dict[str, Any]
) -> None:
    """Whatever stands in it: the key is left out, or pinned to the algorithm of its kind."""
    found = parse_keys(json.dumps({"keys": [{**key.jwk(), **changes}]}).encode())
    assert len(found.keys) + len(found.left_out) == 1
    assert {algorithm for _, algorithm in found.keys} <= {key.algorithm}
