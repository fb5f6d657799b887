"""Who asks: bearer tokens checked, and turned into a principal."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NoReturn

import msgspec
import structlog
from joserfc import jws, jwt
from joserfc.errors import ExpiredTokenError, InvalidClaimError, JoseError, MissingClaimError

from gateway.errors import RefusedError
from gateway.keys import KeySource, UnknownKeyError
from gateway.settings import GatewaySettings
from schemas.errors import ErrorCode, InvalidIdError
from schemas.ids import token as checked_token

_log = structlog.get_logger("decisec.auth")

MAX_TOKEN_BYTES = 8192
_CHALLENGE = 'Bearer realm="decisec"'
_DETAIL = "A valid bearer token is needed."
_decode_claims = msgspec.json.Decoder(dict[str, Any]).decode


class Scope(StrEnum):
    """What a token may be good for."""

    VMS_READ = "vms:read"
    VMS_WRITE = "vms:write"
    USAGE_READ = "usage:read"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks, on behalf of which customer, and what they may do."""

    subject: str
    customer_id: str
    scopes: frozenset[str]

    def require(self, scope: Scope) -> None:
        """Go on only with this scope.

        Raises:
            RefusedError: FORBIDDEN.
        """
        if scope not in self.scopes:
            raise RefusedError(
                ErrorCode.FORBIDDEN,
                f"The token lacks the scope {scope.value}.",
                headers={
                    "WWW-Authenticate": f'{_CHALLENGE}, error="insufficient_scope", '
                    f'scope="{scope.value}"'
                },
            )


class Authenticator:
    """Checks `Authorization` headers.

    The caller always gets the same answer to a token that is not good; the reason is only
    logged, as a constant word.
    """

    def __init__(
        self, keys: KeySource, settings: GatewaySettings, now_s: Callable[[], float] = time.time
    ) -> None:
        self._keys = keys
        self._customer_claim = settings.customer_claim
        self._claims = jwt.JWTClaimsRegistry(
            now=lambda: int(now_s()),
            leeway=settings.jwt_leeway_s,
            iss={"essential": True, "value": settings.jwt_issuer},
            aud={"essential": True, "value": settings.jwt_audience},
            exp={"essential": True},
        )

    async def principal(self, authorization: str | None) -> Principal:
        """The principal that a header stands for.

        Raises:
            RefusedError: UNAUTHENTICATED, with the challenge that RFC 6750 asks for.
            TransientError: The keys cannot be had at the moment.
        """
        if not authorization:
            raise RefusedError(
                ErrorCode.UNAUTHENTICATED, _DETAIL, headers={"WWW-Authenticate": _CHALLENGE}
            )
        scheme, _, credentials = authorization.partition(" ")
        if scheme.lower() != "bearer" or not credentials:
            _refuse("no_bearer")
        if len(credentials) > MAX_TOKEN_BYTES:
            _refuse("too_long")
        return self._principal(await self._verified(credentials))

    async def _verified(self, credentials: str) -> dict[str, Any]:
        try:
            # Reading the header trusts nothing in it: the source's own algorithms apply.
            signed = jws.extract_compact(credentials.encode("ascii"))
            key = await self._keys.key_for(signed.headers())
            if not jws.validate_compact(signed, key, algorithms=self._keys.algorithms):
                _refuse("bad_signature")
            claims = _decode_claims(signed.payload)
            self._claims.validate(claims)
        except UnknownKeyError:
            _refuse("unknown_key")
        except ExpiredTokenError:
            _refuse("expired")
        except (InvalidClaimError, MissingClaimError) as error:
            _refuse(error.error)
        except JoseError as error:
            _refuse(error.error or "not_a_token")
        except (
            msgspec.DecodeError,
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            RecursionError,
        ):
            # What a library makes of garbage: bad base64, JSON of the wrong shape or too deep.
            _refuse("not_a_token")
        return claims

    def _principal(self, claims: dict[str, Any]) -> Principal:
        customer = claims.get(self._customer_claim)
        subject = claims.get("sub", "")
        scopes = claims.get("scope", "")
        if not (
            isinstance(customer, str)
            and isinstance(subject, str)
            and isinstance(scopes, str)
            and len(subject) <= 255
        ):
            _refuse("wrong_claim_type")
        try:
            checked_token(customer)
        except InvalidIdError:
            _refuse("invalid_customer")
        return Principal(subject, customer, frozenset(scopes.split()))


def _refuse(reason: str) -> NoReturn:
    _log.info("authentication.refused", reason=reason)
    raise RefusedError(
        ErrorCode.UNAUTHENTICATED,
        _DETAIL,
        headers={"WWW-Authenticate": f'{_CHALLENGE}, error="invalid_token"'},
    ) from None
