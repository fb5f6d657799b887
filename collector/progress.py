"""Tells the batchers how far hosts have come, in the stream that their frames stand in."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import structlog

from collector.claims import Claims
from runtime.errors import TransientError
from runtime.publisher import Publisher
from schemas.codec import encode
from schemas.ids import new_id
from schemas.progress import HostProgress
from schemas.subjects import metrics_progress

_log = structlog.get_logger("decisec.progress")

_LIMIT_S = 5.0
_MOST_HOSTS = 8000
"""In one message: ids have up to 63 characters, and NATS takes 1 MiB."""


class Progress:
    """Says what claims have come to.

    Args:
        publisher: The way to the stream.
        collector_id: Whose word it is; a part of the subject.
    """

    def __init__(self, publisher: Publisher, collector_id: UUID) -> None:
        self._publisher = publisher
        self._subject = metrics_progress(str(collector_id))

    async def tell(self, floors: Sequence[tuple[Claims, int]]) -> None:
        """Say what is true by now. What does not get through is said the next time.

        Args:
            floors: The claims that came to each consumer, and up to which place in `METRICS_RAW`
                every frame is answered that can belong to one of their hosts.
        """
        released: dict[str, int] = {}
        for claims, floor in floors:
            released |= claims.release(floor)
        hosts = sorted(released.items())
        try:
            for start in range(0, len(hosts), _MOST_HOSTS):
                await self._publish(dict(hosts[start : start + _MOST_HOSTS]))
        except TransientError as error:
            for claims, _ in floors:
                claims.say_again()
            _log.warning("progress.not_told", error=str(error))

    async def _publish(self, complete_ms: dict[str, int]) -> None:
        await self._publisher.publish(
            self._subject,
            encode(HostProgress(complete_ms=complete_ms)),
            msg_id=str(new_id()),
            limit_s=_LIMIT_S,
        )
