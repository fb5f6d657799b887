"""Frames that the store can never take: set aside with the reason, never dropped."""

from __future__ import annotations

import structlog

from batcher.buffer import Custody
from batcher.telemetry import Instruments
from runtime.consumer import Delivery
from runtime.errors import PoisonError, TransientError
from runtime.publisher import Publisher
from schemas import subjects
from schemas.errors import InvalidIdError
from schemas.frames import (
    HEADER_DETAIL,
    HEADER_ORIGIN_SEQUENCE,
    HEADER_ORIGIN_STREAM,
    HEADER_REASON,
    HEADER_REPLAY,
    RejectReason,
    replay_of,
)

_log = structlog.get_logger("decisec.refusals")

_UNKNOWN_HOST = "unknown"
_DETAIL_LENGTH = 300


class Refusals:
    """Publishes refused frames on `metrics.rejected.store_refused.<host>` and answers for them."""

    def __init__(self, publisher: Publisher, custody: Custody, instruments: Instruments) -> None:
        self._publisher = publisher
        self._custody = custody
        self._instruments = instruments

    async def refuse(self, delivery: Delivery, reason: str, detail: str) -> None:
        """Set one frame aside, with its original bytes, then ack it.

        If it cannot be published it is not acked either: the server repeats it later.
        """
        try:
            host = subjects.host_of_metrics(delivery.subject)
        except InvalidIdError:
            host = _UNKNOWN_HOST
        replay = replay_of(delivery.headers)
        try:
            await self._publisher.publish(
                subjects.metrics_rejected(RejectReason.STORE_REFUSED, host),
                delivery.data,
                msg_id=f"{RejectReason.STORE_REFUSED}:{delivery.stream}:{delivery.sequence}",
                headers={
                    HEADER_REASON: RejectReason.STORE_REFUSED,
                    HEADER_DETAIL: header_text(f"{reason}: {detail}"),
                    HEADER_ORIGIN_STREAM: delivery.stream,
                    HEADER_ORIGIN_SEQUENCE: str(delivery.sequence),
                    **({HEADER_REPLAY: replay} if replay else {}),
                },
            )
        except (TransientError, PoisonError) as error:
            _log.error("frame.refusal_failed", sequence=delivery.sequence, error=str(error))
            self._custody.release(delivery)
            return
        self._instruments.refused(reason)
        _log.error(
            "frame.refused", host=host, sequence=delivery.sequence, reason=reason, detail=detail
        )
        await self._custody.ack(delivery)


def header_text(text: str) -> str:
    """The text as one line of printable ASCII, cut to what a header should hold."""
    flat = " ".join(text.split())
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in flat)[:_DETAIL_LENGTH]
