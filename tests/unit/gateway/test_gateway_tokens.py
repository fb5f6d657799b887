"""Tokens of a real issuer: what is taken, what is refused, and what is asked anew each time."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Any, Literal

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import OctKey
from joserfc.jws import JWSRegistry

from decisec.devkit.tokens import ISSUER
from gateway.auth import Principal, Scope
from gateway.compact import NotATokenError, parse
from gateway.errors import RefusedError
from gateway.issuer_keys import ASK_BURST
from gateway.verified_tokens import VerifiedTokens
from runtime.clock import utc_now
from schemas.errors import ErrorCode
from schemas.ids import token
from schemas.tokens import Revocation, RevokedBy
from tests.support.issuer import (
    ALGORITHMS,
    SigningKey,
    base64url,
    key_of,
)
from tests.support.token_bench import EC, ED, KEYS, bench, refused
from tests.support.tokens import KEY, bad_tokens, claims, forge


@pytest.mark.parametrize("key", KEYS, ids=ALGORITHMS)
async def test_a_good_token_of_each_algorithm_is_taken(key: SigningKey) -> None:
    """And what it says is the principal."""
    async with bench() as (_, authenticator):
        for header in ({}, {"typ": "JWT"}, {"typ": "at+jwt"}, {"typ": None}):
            token = key.token(header=header, jti="t-1")
            for _ in range(2):
                who = await authenticator.principal(f"Bearer {token}")
                assert (who.customer_id, who.subject, who.token_id) == ("acme", "tester", "t-1")


@pytest.mark.parametrize("key", KEYS, ids=ALGORITHMS)
async def test_keys_that_a_header_brings_along_are_not_looked_at(key: SigningKey) -> None:
    """Neither for good, in a token of the issuer's, nor for bad, in one of somebody else's."""
    own = SigningKey(key.algorithm, key.kid, number=7)
    brought: dict[str, Any] = {
        "jwk": own.jwk(),
        "jku": "http://127.0.0.1:9/keys",
        "x5u": "http://127.0.0.1:9/certificate",
        "x5c": ["AAAA"],
        "x5t": "x",
    }
    async with bench() as (made, authenticator):
        await authenticator.principal(f"Bearer {key.token(header=brought)}")
        await refused(authenticator, own.token(header=brought))
        for kid in (None, "jwk", "own"):
            await refused(authenticator, own.token(header={**brought, "kid": kid}))
        assert made.document.reads < 3 + ASK_BURST


def confused() -> dict[str, str]:
    """Tokens that a careless verifier takes, by their trick."""
    found: dict[str, str] = {}
    body = claims()
    for key in KEYS:
        spellings = {
            "PEM": _public(key, "PEM"),
            "DER": _public(key, "DER"),
            "JWK": json.dumps(key.jwk()).encode(),
        }
        for spelling, secret in spellings.items():
            header = {"alg": "HS256", "kid": key.kid}
            found[f"HMAC by the {key.algorithm} key as {spelling}"] = forge(header, body, secret)
            found[f"{key.algorithm} claimed, HMAC by {spelling}"] = forge(
                {"alg": key.algorithm, "kid": key.kid}, body, secret
            )
        for name in ("none", "None", "NONE", "nOnE", "", "HS256", "ES384", "PS256", "RS512"):
            token = key.token(header={"alg": name})
            found[f"{key.algorithm} called {name!r}"] = token
            found[f"{key.algorithm} called {name!r}, unsigned"] = token.rpartition(".")[0] + "."
        for other in KEYS:
            if other is not key:
                found[f"{key.algorithm} under the kid of {other.algorithm}"] = key.token(
                    header={"kid": other.kid}
                )
                found[f"{key.algorithm} called {other.algorithm}"] = key.token(
                    header={"alg": other.algorithm}
                )
        stranger = SigningKey(key.algorithm, key.kid, number=9)
        found[f"{key.algorithm} by a stranger's key"] = stranger.token()
        found[f"{key.algorithm} without kid"] = key.token(header={"kid": None})
        for kid in ("", "unknown", "../keys", f"{key.kid} ", key.kid.upper(), "' OR 1=1 --", 7,
                    None, [key.kid], {"a": 1}):  # fmt: skip
            if kid is not None:
                found[f"{key.algorithm} with kid {kid!r}"] = key.token(header={"kid": kid})
        found[f"{key.algorithm}, signature empty"] = key.token().rpartition(".")[0] + "."
        for size in (1, 63, 64, 65, 256, 4096):
            zeros = base64url(bytes(size)).decode()
            found[f"{key.algorithm}, {size} zero bytes as signature"] = (
                key.token().rpartition(".")[0] + "." + zeros
            )
    found["line break at the end"] = ED.token() + "\n"
    found["white space before"] = " " + ED.token()
    found["two tokens"] = f"{ED.token()} {ED.token()}"
    found["ES256, signature in DER"] = _der_signed()
    found["dev key"] = forge({"alg": "HS256", "kid": "dev"}, body, KEY)
    found["EdDSA by its other name"] = ED.token(header={"alg": "Ed25519"})
    return found


def _public(key: SigningKey, encoding: Literal["PEM", "DER"]) -> bytes:
    """The public key as everybody may have it in a file."""
    whole = key_of(key.algorithm)
    assert not isinstance(whole, OctKey)
    return whole.as_bytes(encoding, private=False)


def _der_signed() -> str:
    """ES256 with the signature in ASN.1, as OpenSSL makes it."""
    signed = EC.token().rpartition(".")[0]
    key = key_of("ES256").private_key
    assert isinstance(key, EllipticCurvePrivateKey)
    raw = key.sign(signed.encode(), ECDSA(SHA256()))
    return f"{signed}.{base64url(raw).decode()}"


async def test_no_trick_with_algorithms_or_kids_works() -> None:
    """Each key verifies by its own algorithm alone, and only what it has signed."""
    async with bench() as (_, authenticator):
        for what, token in confused().items():
            try:
                await refused(authenticator, token)
            except BaseException as error:
                error.add_note(what)
                raise


async def test_what_is_bad_in_a_development_token_is_bad_in_any() -> None:
    """HS256 tokens, good ones included, are nothing to keys of an issuer."""
    async with bench() as (_, authenticator):
        for token in (*bad_tokens().values(), forge({"alg": "HS256"}, claims())):
            await refused(authenticator, token)


def bad_payloads() -> dict[str, dict[str, Any] | bytes]:
    """Claims that are refused although the signature is good."""
    now_s = int(time.time())
    good = json.dumps(claims()).encode()
    return {
        "expired": claims(exp=now_s - 6),
        "not yet valid": claims(nbf=now_s + 60),
        "issued in the future": claims(iat=now_s + 60),
        "exp a text": claims(exp=str(now_s + 600)),
        "exp a huge number": b'{"exp":1' + b"0" * 5000 + b"}",
        "exp a huger number": b'{"exp":1e999}',
        "exp not a number": good[:-1] + b',"nbf":NaN}',
        "another issuer": claims(iss=f"{ISSUER}/"),
        "issuer of another case": claims(iss=ISSUER.upper()),
        "another audience": claims(aud="decisec2"),
        "customer twice": good[:-1] + b',"customer":"globex"}',
        "exp twice": good[:-1] + b',"exp":99999999999}',
        "a name twice inside": good[:-1] + b',"x":[{"a":1,"a":1}]}',
        "escaped name twice": good[:-1] + b',"\\u0063ustomer":"globex"}',
        "deep": good[:-1] + b',"x":' + b"[" * 1500 + b"]" * 1500 + b"}",
        "no object": b"[1]",
        "not UTF-8": b'{"sub":"\xff"}',
        "UTF-16": json.dumps(claims()).encode("utf-16"),
        "two objects": good + good,
        "customer of another shape": claims(customer="Acme"),
        "customer a wildcard": claims(customer="*"),
        "customer of the operators' name": claims(customer="operator"),
        "lives too long": claims(exp=now_s + 604_900),
    }


@pytest.mark.parametrize("what", sorted(bad_payloads()))
async def test_bad_claims_are_refused_whoever_signed(what: str) -> None:
    """With the same answer as for a bad signature."""
    async with bench() as (_, authenticator):
        await refused(authenticator, ED.token(bad_payloads()[what]))


@given(st.data())
async def test_no_changed_token_is_taken(data: st.DataObject) -> None:
    """Whichever character of it is another one."""
    async with bench() as (_, authenticator):
        token = data.draw(st.sampled_from(KEYS)).token()
        place = data.draw(st.integers(0, len(token) - 1))
        other = data.draw(st.characters(codec="ascii").filter(lambda c: c != token[place]))
        await refused(authenticator, token[:place] + other + token[place + 1 :])


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
_names = ("iss", "aud", "sub", "jti", "customer", "scope", "scp", "iat", "nbf", "exp", "x")
_sane = {
    "aud": st.lists(st.sampled_from(["decisec", "other"])),
    "customer": st.sampled_from(["acme", "operator", "", "a.b", "*"]),
    "scope": st.sampled_from(["admin", "vms:read admin", "vms:write", "root"]),
    "scp": st.lists(st.sampled_from(["admin", "usage:read", "x"])),
    "exp": st.integers(0, 4_000_000_000),
    "iat": st.integers(0, 4_000_000_000),
    "nbf": st.integers(0, 4_000_000_000),
}


@given(
    st.fixed_dictionaries(
        {}, optional={name: _values | _sane.get(name, st.nothing()) for name in _names}
    ),
    st.sets(st.sampled_from(_names)),
)
async def test_whatever_is_claimed_nobody_becomes_more_than_they_may(
    changes: dict[str, Any], left_out: set[str]
) -> None:
    """A signed token is refused, or stands for a customer or an operator, for a short time."""
    payload = {name: v for name, v in {**claims(), **changes}.items() if name not in left_out}
    async with bench() as (made, authenticator):
        try:
            who = await authenticator.principal(f"Bearer {ED.token(payload)}")
        except RefusedError:
            return
        assert payload["iss"] == ISSUER
        assert "decisec" in payload["aud"]
        assert who.scopes <= {"vms:read", "vms:write", "usage:read", "admin"}
        assert who.customer_id == (payload.get("customer") or "")
        assert who.customer_id in ("", "acme") or token(who.customer_id) == who.customer_id
        assert who.customer_id or "admin" in who.scopes
        assert who.expires_at_s - who.issued_at_s <= 604_800
        assert who.not_before_s - 5 <= made.now_s < who.expires_at_s + 5


@given(st.text(max_size=400) | st.from_regex(r"[A-Za-z0-9_-]{0,40}(\.[A-Za-z0-9_-]{0,40}){2}"))
def test_no_text_raises_anything_but_that_it_is_no_token(text: str) -> None:
    """Nor has it a second spelling: what is taken apart can be put together again."""
    try:
        found = parse(text)
    except NotATokenError:
        return
    assert f"{found.signed.decode()}.{base64url(found.signature).decode()}" == text


async def test_the_audience_may_be_a_list_and_the_scopes_as_well() -> None:
    """`scope` in one text, `scp` as text or list; words that mean nothing here are dropped."""
    async with bench() as (_, authenticator):

        async def scopes(**changes: Any) -> set[str]:
            token = ED.token(aud=["other", "decisec"], **changes)
            return set((await authenticator.principal(f"Bearer {token}")).scopes)

        assert await scopes(scope="openid vms:read  vms:write") == {"vms:read", "vms:write"}
        assert await scopes(scope=None, scp=["usage:read", "profile"]) == {"usage:read"}
        assert await scopes(scope=None, scp="vms:read") == {"vms:read"}
        assert await scopes(scope=["vms:read"], scp=["vms:write"]) == {"vms:read", "vms:write"}
        assert await scopes(scope=None) == set()
        assert await scopes(scope="VMS:READ vms:*") == set()


async def test_an_operator_without_customer_may_do_what_is_an_operators() -> None:
    """`admin` implies nothing else, and a customer's things need a customer."""
    async with bench() as (_, authenticator):
        both = ED.token(customer=None, scope="admin vms:read")
        who = await authenticator.principal(f"Bearer {both}")
        assert who.customer_id == ""
        who.require(Scope.ADMIN)
        for scope in (Scope.VMS_READ, Scope.VMS_WRITE):
            with pytest.raises(RefusedError) as caught:
                who.require(scope)
            assert caught.value.code is ErrorCode.FORBIDDEN
        who = await authenticator.principal(f"Bearer {ED.token(scope='admin')}")
        who.require(Scope.ADMIN)
        with pytest.raises(RefusedError):
            who.require(Scope.VMS_READ)
        who = await authenticator.principal(f"Bearer {ED.token()}")
        with pytest.raises(RefusedError):
            who.require(Scope.ADMIN)
        await refused(authenticator, ED.token(customer=None))


async def test_the_time_is_judged_at_each_use() -> None:
    """With the leeway at both ends; a token that was verified before expires all the same."""
    async with bench(jwt_leeway_s=5) as (made, authenticator):
        began = int(made.now_s)
        header = f"Bearer {ED.token(claims(iat=began, nbf=began + 10, exp=began + 20))}"
        for at, good in ((0, False), (4.9, False), (5, True), (15, True), (24.9, True), (25, False),
                         (15, True), (4, False)):  # fmt: skip
            made.now_s = began + at
            if good:
                await authenticator.principal(header)
            else:
                with pytest.raises(RefusedError):
                    await authenticator.principal(header)


def revocation(by: RevokedBy, value: str, before_s: float | None = None) -> Revocation:
    """One that an operator has made."""
    return Revocation(
        by=by,
        value=value,
        issued_before=None if before_s is None else datetime.fromtimestamp(before_s, UTC),
        reason="leaked",
        requested_by="op",
        revoked_at=utc_now(),
    )


async def test_a_revoked_token_is_refused_although_it_was_verified_before() -> None:
    """By its id; by subject or customer, if it was issued before. Others go on."""
    async with bench() as (made, authenticator):
        began = int(made.now_s)

        def token(**changes: Any) -> str:
            return f"Bearer {ED.token(**{'iat': began, **changes})}"

        for by, value, before_s, struck, spared in (
            (RevokedBy.JTI, "t/1 ü", None, {"jti": "t/1 ü"}, {"jti": "t/1"}),
            (RevokedBy.SUBJECT, "ann", began + 0.5, {"sub": "ann"},
             {"sub": "ann", "iat": began + 1}),
            (RevokedBy.CUSTOMER, "globex", began + 1, {"customer": "globex"},
             {"customer": "globex", "iat": began + 1}),
        ):  # fmt: skip
            made.revoked.found.clear()
            bad, good = token(**struck), token(**spared)
            await authenticator.principal(bad)
            made.revoked.add(revocation(by, value, before_s))
            await refused(authenticator, bad.removeprefix("Bearer "))
            await authenticator.principal(good)
            await authenticator.principal(token(sub=None))


def test_verified_tokens_are_bounded_and_of_one_generation() -> None:
    """The one not asked for longest goes first."""
    who = Principal("a", "acme", frozenset())
    cache = VerifiedTokens(most=3)
    names = [cache.name(text) for text in "abcd"]
    for name in names[:3]:
        cache.put(name, 1, who)
    assert cache.get(names[0], 1) is who
    cache.put(names[3], 1, who)
    assert [cache.get(name, 1) is who for name in names] == [True, False, True, True]
    assert cache.get(names[0], 2) is None
    cache.forget(names[0])
    assert (len(cache), cache.get(names[0], 1)) == (2, None)
    assert JWSRegistry.algorithms.keys() >= set(ALGORITHMS)
