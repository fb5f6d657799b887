"""An authenticator with an issuer whose keys, clocks and revocations a test holds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from gateway.auth import Authenticator
from gateway.errors import RefusedError
from gateway.issuer_keys import IssuerKeys
from gateway.settings import GatewaySettings
from schemas.errors import ErrorCode
from tests.support.issuer import (
    ALGORITHMS,
    MemoryDocument,
    SigningKey,
)
from tests.support.revocations import Revoked

RSA, EC, ED = (SigningKey(algorithm, algorithm.lower()) for algorithm in ALGORITHMS)
KEYS = (RSA, EC, ED)


@dataclass
class Bench:
    """An authenticator whose issuer, clocks and revocations a test holds."""

    document: MemoryDocument
    revoked: Revoked = field(default_factory=Revoked)
    now_s: float = field(default_factory=time.time)
    monotonic_s: float = 1000.0
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.keys = IssuerKeys(
            self.document,
            refresh_s=1e6,
            max_stale_s=3600.0,
            wait_s=10.0,
            tell=self.told.append,
            clock=lambda: self.monotonic_s,
        )

    def authenticator(self, **options: Any) -> Authenticator:
        """One on these keys."""
        settings = GatewaySettings(jwks="unused", **options)
        return Authenticator(self.keys, self.revoked, settings, now_s=lambda: self.now_s)


@asynccontextmanager
async def bench(*keys: SigningKey, **options: Any) -> AsyncIterator[tuple[Bench, Authenticator]]:
    """A bench whose keys are followed for the length of the block."""
    made = Bench(MemoryDocument(*(keys or KEYS)))
    async with asyncio.TaskGroup() as group:
        following = group.create_task(made.keys.run(), name="keys")
        await made.keys.synced()
        try:
            yield made, made.authenticator(**options)
        finally:
            following.cancel()


async def refused(authenticator: Authenticator, token: str) -> RefusedError:
    """The refusal of a token."""
    with pytest.raises(RefusedError) as caught:
        await authenticator.principal(f"Bearer {token}")
    assert caught.value.code is ErrorCode.UNAUTHENTICATED
    return caught.value
