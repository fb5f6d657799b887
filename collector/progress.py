"""Tells the batchers how far hosts have come, in the stream that their frames stand in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from collector.claims import Claims
from runtime.errors import TransientError
from runtime.publisher import Publisher
from schemas.codec import encode
from schemas.ids import new_id
from schemas.progress import HostProgress
from schemas.subjects import metrics_progress

_log = structlog.get_logger("decisec.progress")

_EVERY_S = 0.5
_LIMIT_S = 5.0
_MOST_HOSTS = 8000
"""In one message: ids have up to 63 characters, and NATS takes 1 MiB."""


class Progress:
    """Says what the claims of one consumer have come to.

    Args:
        publisher: The way to the stream.
        name: The consumer's, a part of the subject.
        claims: What came with its frames.
        ack_floor: Up to which place in `METRICS_RAW` every frame is answered that can belong to
            one of its hosts.
    """

    def __init__(
        self,
        publisher: Publisher,
        name: str,
        claims: Claims,
        ack_floor: Callable[[], Awaitable[int]],
    ) -> None:
        self._publisher = publisher
        self._name = name
        self._claims = claims
        self._ack_floor = ack_floor

    async def run(self) -> None:
        """Say it about twice a second, as long as there is something new, until cancelled."""
        while True:
            await asyncio.sleep(_EVERY_S)
            if self._claims.waiting:
                await self.tell()

    async def tell(self) -> None:
        """Say what is true by now. What does not get through is said the next time."""
        try:
            released = self._claims.release(await self._ack_floor())
            hosts = sorted(released.items())
            for start in range(0, len(hosts), _MOST_HOSTS):
                await self._publish(dict(hosts[start : start + _MOST_HOSTS]))
        except TransientError as error:
            self._claims.say_again()
            _log.warning("progress.not_told", error=str(error))

    async def _publish(self, complete_ms: dict[str, int]) -> None:
        await self._publisher.publish(
            metrics_progress(self._name),
            encode(HostProgress(complete_ms=complete_ms)),
            msg_id=str(new_id()),
            limit_s=_LIMIT_S,
        )
