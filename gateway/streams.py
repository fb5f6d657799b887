"""How many streams are open, and for whom; and when they all end."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from gateway.auth import Authenticator, Principal
from gateway.errors import RefusedError, unavailable
from gateway.sse import Ending
from runtime.errors import TransientError
from runtime.telemetry import meter
from schemas.errors import ErrorCode
from schemas.event_lists import StreamNotice

_LOOK_S = 0.5
"""Between two looks at a stream's token: revoked, it is to be without effect in a second."""

STOPPING = StreamNotice(
    code="stopping", message="This gateway stops; connect once more.", resume=True
)
_UNAUTHENTICATED = StreamNotice(
    code="unauthenticated", message="The token is no longer good; take a new one.", resume=False
)


class Streams:
    """Counts streams, and ends them.

    Args:
        most: On this gateway.
        most_per_customer: Of one customer.
    """

    def __init__(self, most: int, most_per_customer: int) -> None:
        self._most = most
        self._most_per_customer = most_per_customer
        self._open: Counter[str] = Counter()
        self._closing = asyncio.Event()
        self._gauge = meter().create_up_down_counter(
            "decisec_gateway_streams", description="Open event and metric streams"
        )

    @contextmanager
    def room(self, customer_id: str, kind: str) -> Iterator[None]:
        """A stream's place, for the length of the block.

        Raises:
            RefusedError: RATE_LIMITED if the customer has too many, UNAVAILABLE if all have, or if
                the gateway stops.
        """
        if self._closing.is_set() or self._open.total() >= self._most:
            raise unavailable()
        if self._open[customer_id] >= self._most_per_customer:
            raise RefusedError(
                ErrorCode.RATE_LIMITED,
                f"There are {self._most_per_customer} streams open already; close one.",
                retry_after_s=5.0,
            )
        self._open[customer_id] += 1
        self._gauge.add(1, {"kind": kind})
        try:
            yield
        finally:
            self._gauge.add(-1, {"kind": kind})
            self._open[customer_id] -= 1
            if not self._open[customer_id]:
                del self._open[customer_id]

    def close(self) -> None:
        """End all streams, and open no more."""
        self._closing.set()

    async def closed(self) -> StreamNotice:
        """Returns once they are to end."""
        await self._closing.wait()
        return STOPPING


def token_ends(authenticator: Authenticator, header: str | None, principal: Principal) -> Ending:
    """An ending: the token that a stream was opened with is no longer good for it."""

    async def ended() -> StreamNotice:
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                now = await authenticator.principal(header)
            except RefusedError:
                return _UNAUTHENTICATED
            except TransientError:
                continue  # nobody can say at the moment
            if now.customer_id != principal.customer_id or now.scopes != principal.scopes:
                return _UNAUTHENTICATED

    return ended
