"""What a token claims: read strictly into a principal, and judged anew at each use."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from gateway.compact import NotATokenError
from gateway.principal import Principal, Scope
from gateway.settings import GatewaySettings
from schemas.audit import OPERATOR
from schemas.errors import InvalidIdError
from schemas.ids import token as checked_token
from schemas.tokens import customer_key, jti_key, subject_key

_MAX_SUBJECT = 255
_MAX_TIME_S = 2**53
_SCOPES = frozenset(scope.value for scope in Scope)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRules:
    """What is asked of a token's claims.

    Attributes:
        issuer: `iss` is exactly this.
        audience: `aud` is this, or a list that holds it.
        customer_claim: Name of the claim that names the customer.
        leeway_s: How far the issuer's clock may be off.
        max_lifetime_s: From `iat` to `exp`. Revocations are kept for longer than this.
    """

    issuer: str
    audience: str
    customer_claim: str
    leeway_s: float
    max_lifetime_s: float

    @classmethod
    def of(cls, settings: GatewaySettings) -> ClaimRules:
        """The rules that the settings give."""
        return cls(
            issuer=settings.jwt_issuer,
            audience=settings.jwt_audience,
            customer_claim=settings.customer_claim,
            leeway_s=settings.jwt_leeway_s,
            max_lifetime_s=settings.jwt_max_lifetime_s,
        )


def principal_of(claims: dict[str, Any], rules: ClaimRules) -> Principal:
    """Whom verified claims stand for. Whether it is their time is `judge`'s to say.

    Raises:
        NotATokenError: A claim is missing, of the wrong type, or not what the rules ask for.
    """
    if claims.get("iss") != rules.issuer:
        raise NotATokenError("wrong_issuer")
    audience = claims.get("aud")
    if audience != rules.audience and not (
        isinstance(audience, list) and rules.audience in audience
    ):
        raise NotATokenError("wrong_audience")
    issued_at_s = _time_s(claims, "iat")
    expires_at_s = _time_s(claims, "exp")
    not_before_s = _time_s(claims, "nbf") if "nbf" in claims else issued_at_s
    if expires_at_s - issued_at_s > rules.max_lifetime_s:
        raise NotATokenError("lives_too_long")
    subject, token_id = claims.get("sub", ""), claims.get("jti", "")
    if not (isinstance(subject, str) and isinstance(token_id, str)):
        raise NotATokenError("wrong_claim_type")
    if len(subject) > _MAX_SUBJECT or len(token_id) > _MAX_SUBJECT:
        raise NotATokenError("claim_too_long")
    scopes = _words(claims, "scope") | _words(claims, "scp")
    customer_id = _customer(claims.get(rules.customer_claim))
    if not customer_id and Scope.ADMIN not in scopes:
        raise NotATokenError("no_customer")
    keys = (
        jti_key(token_id) if token_id else "",
        subject_key(subject) if subject else "",
        customer_key(customer_id) if customer_id else "",
    )
    return Principal(
        subject=subject,
        customer_id=customer_id,
        scopes=scopes & _SCOPES,
        token_id=token_id,
        issued_at_s=issued_at_s,
        not_before_s=max(not_before_s, issued_at_s),
        expires_at_s=expires_at_s,
        revocation_keys=tuple(key for key in keys if key),
    )


def judge(principal: Principal, now_s: float, leeway_s: float) -> None:
    """Go on only with a token whose time it is.

    Raises:
        NotATokenError: It has expired, or is not valid yet.
    """
    if now_s >= principal.expires_at_s + leeway_s:
        raise NotATokenError("expired")
    if now_s < principal.not_before_s - leeway_s:
        raise NotATokenError("not_yet_valid")


def _time_s(claims: dict[str, Any], name: str) -> float:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise NotATokenError(f"{name}_missing")
    if not (math.isfinite(value) and 0 <= value < _MAX_TIME_S):
        raise NotATokenError(f"{name}_out_of_range")
    return float(value)


def _customer(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise NotATokenError("wrong_claim_type")
    if value == OPERATOR:
        # In the audit this name stands for the operators: their entries are nobody else's.
        raise NotATokenError("reserved_customer")
    try:
        return checked_token(value)
    except InvalidIdError:
        raise NotATokenError("invalid_customer") from None


def _words(claims: dict[str, Any], name: str) -> frozenset[str]:
    """Scopes: words in one text (RFC 8693, section 4.2) or, as some issuers have it, a list."""
    value = claims.get(name, "")
    if isinstance(value, str):
        return frozenset(value.split(" "))
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        return frozenset(value)
    raise NotATokenError("wrong_claim_type")
