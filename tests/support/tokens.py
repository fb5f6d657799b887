"""Tokens for tests: good ones, and the many ways to be bad."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from typing import Any

from decisec.devkit.tokens import ADMIN, ALL_SCOPES, AUDIENCE, ISSUER, mint

KEY = b"test-key-" + b"k" * 32
OTHER_KEY = b"other-key-" + b"o" * 32


def bearer(customer: str = "acme", **options: Any) -> dict[str, str]:
    """Headers with a good token."""
    return {"Authorization": f"Bearer {mint(KEY, customer, **options)}"}


def sighted(customer: str = "acme", **options: Any) -> dict[str, str]:
    """Headers with a customer's token that also sees the names of hosts."""
    return bearer(customer, scopes=(*ALL_SCOPES, ADMIN), **options)


def operator(subject: str = "ops", customer: str | None = None, **options: Any) -> dict[str, str]:
    """Headers with an operator's token, of no customer unless one is given."""
    token = mint(KEY, customer, scopes=(ADMIN,), subject=subject, **options)
    return {"Authorization": f"Bearer {token}"}


def claims(**changes: Any) -> dict[str, Any]:
    """Good claims with some changed; a value of None leaves a claim out."""
    now_s = int(time.time())
    base = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "tester",
        "customer": "acme",
        "scope": "vms:read vms:write usage:read",
        "iat": now_s,
        "exp": now_s + 600,
        **changes,
    }
    return {name: value for name, value in base.items() if value is not None}


def forge(
    header: Any, payload: Mapping[str, Any] | bytes, key: bytes = KEY, digest: str = "sha256"
) -> str:
    """Any header and payload, signed by hand: what no honest library would make."""
    raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    signed = b".".join((_encode(head), _encode(raw)))
    signature = hmac.new(key, signed, digest).digest() if key else b""
    return b".".join((signed, _encode(signature))).decode()


def bad_tokens() -> dict[str, str]:
    """Tokens that must be refused, by what is wrong with them."""
    now_s = int(time.time())
    hs256 = {"alg": "HS256", "typ": "JWT"}
    good = forge(hs256, claims())
    head, body, signature = good.split(".")
    other = forge(hs256, claims(customer="globex")).split(".")
    public = hashlib.sha256(b"a public key that everybody knows").hexdigest().encode()
    return {
        "expired": forge(hs256, claims(exp=now_s - 60)),
        "exp missing": forge(hs256, claims(exp=None)),
        "exp a word": forge(hs256, claims(exp="tomorrow")),
        "exp not a number": forge(hs256, b'{"exp":NaN}'),
        "not yet valid": forge(hs256, claims(nbf=now_s + 600)),
        "issued in the future": forge(hs256, claims(iat=now_s + 600)),
        "wrong issuer": forge(hs256, claims(iss="somebody")),
        "no issuer": forge(hs256, claims(iss=None)),
        "wrong audience": forge(hs256, claims(aud="another")),
        "no audience": forge(hs256, claims(aud=None)),
        "no customer": forge(hs256, claims(customer=None)),
        "customer with a wildcard": forge(hs256, claims(customer="acme.>")),
        "customer with a newline": forge(hs256, claims(customer="acme\n")),
        "customer a list": forge(hs256, claims(customer=["acme"])),
        "scope a number": forge(hs256, claims(scope=7)),
        "scope a list of numbers": forge(hs256, claims(scp=[7])),
        "no customer, and no admin": forge(hs256, claims(customer=None, scope="adminn vms:read")),
        "empty customer of an admin": forge(hs256, claims(customer="", scope="admin")),
        "jti a number": forge(hs256, claims(jti=7)),
        "iat missing": forge(hs256, claims(iat=None)),
        "iat a word": forge(hs256, claims(iat="now")),
        "nbf a word": forge(hs256, claims(nbf="now")),
        "exp true": forge(hs256, claims(exp=True)),
        "exp infinite": forge(hs256, claims(exp=float("inf"))),
        "exp too far": forge(hs256, claims(exp=2**60)),
        "lives for a year": forge(hs256, claims(exp=now_s + 31_536_000)),
        "audience a list without ours": forge(hs256, claims(aud=["a", "b"])),
        "audience in a list of lists": forge(hs256, claims(aud=[["decisec"]])),
        "issuer a list": forge(hs256, claims(iss=["decisec-dev"])),
        "claim twice": forge(hs256, _twice(claims(), "customer", "globex")),
        "claim twice, inside": forge(hs256, _twice(claims(), "x", {}, raw=b'{"a":1,"a":2}')),
        "header member twice": forge(b'{"alg":"none","alg":"HS256"}', claims()),
        "typ of another kind": forge({"alg": "HS256", "typ": "logout+jwt"}, claims()),
        "typ a list": forge({"alg": "HS256", "typ": ["JWT"]}, claims()),
        "payload not encoded": forge({**hs256, "b64": False}, claims()),
        "padded": f"{head}=.{body}.{signature}",
        "bits beyond the last byte": good[:-1] + chr(ord(good[-1]) + 1),
        "subject a number": forge(hs256, claims(sub=7)),
        "subject too long": forge(hs256, claims(sub="s" * 300)),
        "forged": forge(hs256, claims(), key=OTHER_KEY),
        "payload exchanged": f"{head}.{other[1]}.{signature}",
        "no signature": f"{head}.{body}.",
        "alg none": forge({"alg": "none"}, claims(), key=b""),
        "alg None signed": forge({"alg": "None"}, claims()),
        "alg HS384": forge({"alg": "HS384"}, claims(), digest="sha384"),
        "alg HS512": forge({"alg": "HS512"}, claims(), digest="sha512"),
        "alg RS256 with an HMAC": forge({"alg": "RS256"}, claims()),
        "HMAC by a public key": forge(hs256, claims(), key=public),
        "alg a list": forge({"alg": ["HS256"]}, claims()),
        "alg missing": forge({"typ": "JWT"}, claims()),
        "unknown kid": forge({**hs256, "kid": "../../dev/null"}, claims()),
        "kid a number": forge({**hs256, "kid": 1}, claims()),
        "own key in the header": forge(
            {**hs256, "jwk": {"kty": "oct", "k": _encode(OTHER_KEY).decode()}},
            claims(),
            key=OTHER_KEY,
        ),
        "critical extension": forge({**hs256, "crit": ["x"], "x": 1}, claims()),
        "header a list": forge(b'["alg"]', claims()),
        "header a string": forge(b'"alg"', claims()),
        "header nested deeply": forge(b'{"alg":' + b"[" * 3000 + b"]" * 3000 + b"}", claims()),
        "payload a list": forge(hs256, b"[]"),
        "payload not JSON": forge(hs256, b"hello"),
        "payload nested deeply": forge(hs256, b"[" * 2000 + b"]" * 2000),
        "payload not UTF-8": forge(hs256, b'{"iss":"\xff"}'),
        "two parts": f"{head}.{body}",
        "five parts": f"{head}.{body}.{signature}.a.b",
        "garbage": "garbage",
        "dots": "..",
        "huge": good + "A" * 20_000,
    }


def _twice(payload: dict[str, Any], name: str, value: Any, raw: bytes | None = None) -> bytes:
    """The payload with one more member, whatever its name."""
    member = json.dumps({name: value}).encode() if raw is None else b'{"%s":%s}' % (
        name.encode(), raw,
    )  # fmt: skip
    return json.dumps(payload).encode()[:-1] + b"," + member[1:]


def _encode(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
