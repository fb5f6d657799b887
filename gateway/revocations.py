"""Tokens that are revoked, as the bus last told of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta

import structlog

from gateway.principal import Principal
from runtime.buckets import Bucket, Mirror
from runtime.bus import Bus
from runtime.clock import utc_now
from runtime.errors import TransientError
from schemas.tokens import REVOCATION_KEPT_S, REVOKED_TOKENS, Revocation, decode_revocation

_log = structlog.get_logger("decisec.revocations")

_TIDY_EVERY_S = 600.0


class Revocations:
    """The bucket `revoked_tokens`, mirrored: asking it costs some dictionary look-ups.

    The bucket's own limit of bytes bounds the mirror.

    Args:
        bus: The connection.
        max_stale_s: Without a word from the bucket for so long, no token is taken: one that was
            revoked meanwhile could be among them.
        clock: Monotonic seconds.
    """

    def __init__(
        self, bus: Bus, *, max_stale_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._mirror: Mirror[Revocation] = Mirror(Bucket(bus, REVOKED_TOKENS, decode_revocation))
        self._max_stale_s = max_stale_s
        self._clock = clock

    async def run(self) -> None:
        """Follow the bucket until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._mirror.run(), name="mirror-revocations")
            group.create_task(self._tidy(), name="tidy-revocations")

    async def synced(self) -> None:
        """Return once all that stood at the start is there."""
        await self._mirror.synced()

    def covers(self, principal: Principal) -> bool:
        """Whether a principal's token is revoked.

        Raises:
            TransientError: The bucket has not been heard of for too long.
        """
        if self._clock() - self._mirror.confirmed_s > self._max_stale_s:
            raise TransientError("what tokens are revoked has not been heard for too long")
        found = self._mirror.values
        for key in principal.revocation_keys:
            if key in found and found[key].covers(principal.issued_at_s):
                return True
        return False

    async def _tidy(self) -> None:
        # The server tells of no entry that has expired.
        while True:
            await asyncio.sleep(_TIDY_EVERY_S)
            oldest = utc_now() - timedelta(seconds=REVOCATION_KEPT_S)
            for key in [k for k, v in self._mirror.values.items() if v.revoked_at < oldest]:
                self._mirror.forget(key)
