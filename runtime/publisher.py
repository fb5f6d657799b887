"""Publishing to streams: acknowledged, retried, with a bounded number in flight."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass

import nats.errors
import nats.js.errors
from nats.js.api import Header

from runtime.bus import Bus
from runtime.errors import OverloadedError, PoisonError, TransientError
from runtime.retry import publishing
from runtime.telemetry import inject, meter

_STREAM_FULL = frozenset({10047, 10077})
"""JetStream error codes: insufficient storage, maximum messages or bytes exceeded."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a message stands in its stream; `duplicate` if it stood there already."""

    stream: str
    sequence: int
    duplicate: bool


class Publisher:
    """Publishes to JetStream and returns once the stream has the message.

    Safe to call concurrently; calls beyond `max_in_flight` wait. Concurrent calls start in
    order, but a retried one may come after its successors.
    """

    def __init__(self, bus: Bus, *, max_in_flight: int = 256, ack_timeout_s: float = 5.0) -> None:
        self._bus = bus
        self._slots = asyncio.Semaphore(max_in_flight)
        self._ack_timeout_s = ack_timeout_s
        self._published = meter().create_counter(
            "decisec_bus_published", description="Messages that a stream has acknowledged"
        )
        self._failed = meter().create_counter(
            "decisec_bus_publish_attempts_failed", description="Publish attempts without an ack"
        )

    async def publish(
        self,
        subject: str,
        payload: bytes,
        *,
        msg_id: str,
        headers: Mapping[str, str] | None = None,
        limit_s: float = 30.0,
    ) -> Stored:
        """Store one message, trying again for up to `limit_s`.

        Args:
            subject: Where; some stream must cover it.
            payload: At most the server's `max_payload` (1 MiB by default).
            msg_id: `Nats-Msg-Id`: the same id within the stream's window is stored once, which
                makes the retries harmless.
            headers: Added to the id and the trace context.
            limit_s: After this the last error is raised.

        Raises:
            OverloadedError: The stream is full.
            TransientError: No server, no stream, or no ack in time.
            PoisonError: The message can never be stored, such as one that is too large.
        """
        full = inject({**(headers or {}), Header.MSG_ID: msg_id})
        async with self._slots:
            began_s = time.monotonic()
            try:
                # Nearly every publish is stored at once, and a policy costs more than a publish.
                stored = await self._once(subject, payload, full)
            except TransientError:
                left_s = limit_s - (time.monotonic() - began_s)
                if left_s <= 0:
                    raise
                async for attempt in publishing(left_s):
                    with attempt:
                        stored = await self._once(subject, payload, full)
        self._published.add(1, {"stream": stored.stream})
        return stored

    async def _once(self, subject: str, payload: bytes, headers: dict[str, str]) -> Stored:
        if not self._bus.connected:
            raise TransientError("not connected to NATS")
        try:
            async with asyncio.timeout(self._ack_timeout_s):
                future = await self._bus.js.publish_async(subject, payload, headers=headers)
                ack = await future
        except nats.errors.MaxPayloadError as error:
            raise PoisonError(
                "too_large", f"{len(payload)} bytes on {subject} pass NATS' max_payload"
            ) from error
        except nats.js.errors.APIError as error:
            self._failed.add(1)
            if error.err_code in _STREAM_FULL:
                raise OverloadedError(f"the stream of {subject} is full") from error
            raise TransientError(f"{subject} was not stored: {error}") from error
        except (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError) as error:
            self._failed.add(1)
            raise TransientError(f"{subject} was not stored: {_words(error)}") from error
        return Stored(ack.stream, ack.seq, bool(ack.duplicate))


def _words(error: BaseException) -> str:
    return str(error) or "no acknowledgement in time"
