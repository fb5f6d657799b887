"""Who asks: bearer tokens checked, and turned into a principal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NoReturn, Protocol

import structlog

from gateway.claims import ClaimRules, judge, principal_of
from gateway.compact import MAX_TOKEN_BYTES, NotATokenError, json_object, parse
from gateway.errors import RefusedError
from gateway.keys import KeySource, UnknownKeyError
from gateway.principal import CHALLENGE, CUSTOMER_SCOPES, Principal, Scope
from gateway.settings import GatewaySettings
from gateway.verified_tokens import VerifiedTokens
from runtime.telemetry import meter
from schemas.errors import ErrorCode

__all__ = ["CUSTOMER_SCOPES", "Authenticator", "Principal", "RevocationList", "Scope"]

_log = structlog.get_logger("decisec.auth")

_DETAIL = "A valid bearer token is needed."


class RevocationList(Protocol):
    """What the authenticator needs of `Revocations`."""

    async def run(self) -> None:
        """Follow what is revoked until cancelled."""

    async def synced(self) -> None:
        """Return once it is known what is revoked."""

    def covers(self, principal: Principal) -> bool:
        """Whether a principal's token is revoked."""


class Authenticator:
    """Checks `Authorization` headers.

    The caller always gets the same answer to a token that is not good; the reason is only
    logged, as a constant word.

    Args:
        keys: To verify tokens with.
        revocations: Tokens that are not taken although they are good.
        settings: What is asked of claims.
        now_s: Unix time.
    """

    def __init__(
        self,
        keys: KeySource,
        revocations: RevocationList,
        settings: GatewaySettings,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys
        self._revocations = revocations
        self._rules = ClaimRules.of(settings)
        self._now_s = now_s
        self._verified = VerifiedTokens()
        self._refused = meter().create_counter(
            "decisec_gateway_tokens_refused", description="Requests without a good token, by reason"
        )

    async def run(self) -> None:
        """Keep keys and revocations up to date until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keys.run(), name="keys")
            group.create_task(self._revocations.run(), name="revocations")

    async def synced(self) -> None:
        """Return once there are keys, and it is known what is revoked."""
        await self._keys.synced()
        await self._revocations.synced()

    async def principal(self, authorization: str | None) -> Principal:
        """The principal that a header stands for.

        A token that was verified before costs some microseconds; its time and whether it was
        revoked are judged all the same.

        Raises:
            RefusedError: UNAUTHENTICATED, with the challenge that RFC 6750 asks for.
            TransientError: The keys, or what is revoked, cannot be had at the moment.
        """
        if not authorization:
            raise RefusedError(
                ErrorCode.UNAUTHENTICATED, _DETAIL, headers={"WWW-Authenticate": CHALLENGE}
            )
        scheme, _, credentials = authorization.partition(" ")
        if scheme.lower() != "bearer" or not credentials:
            self._refuse("no_bearer")
        if len(credentials) > MAX_TOKEN_BYTES:
            self._refuse("too_long")
        name = self._verified.name(credentials)
        known = self._verified.get(name, self._keys.generation)
        found = known or await self._verify(credentials)
        try:
            self._judge(found)
        except RefusedError:
            self._verified.forget(name)
            raise
        if known is None:
            # Nothing was awaited since its key was found: it is of this generation.
            self._verified.put(name, self._keys.generation, found)
        return found

    def _judge(self, principal: Principal) -> None:
        try:
            judge(principal, self._now_s(), self._rules.leeway_s)
        except NotATokenError as error:
            self._refuse(error.reason)
        if self._revocations.covers(principal):
            self._refuse("revoked")

    async def _verify(self, credentials: str) -> Principal:
        try:
            token = parse(credentials)
            key = await self._keys.key_for(token)
            if not key.verifies(token):
                self._refuse("bad_signature")
            return principal_of(json_object(token.payload), self._rules)
        except UnknownKeyError:
            self._refuse("unknown_key")
        except NotATokenError as error:
            self._refuse(error.reason)

    def _refuse(self, reason: str) -> NoReturn:
        _log.info("authentication.refused", reason=reason)
        self._refused.add(1, {"reason": reason})
        raise RefusedError(
            ErrorCode.UNAUTHENTICATED,
            _DETAIL,
            headers={"WWW-Authenticate": f'{CHALLENGE}, error="invalid_token"'},
        ) from None
