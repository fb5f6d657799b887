"""Publishing to streams: acknowledged, retried, with a bounded number in flight."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

import nats.errors
from nats.js.api import Header

from runtime.acks import Acks, Stored
from runtime.bus import Bus
from runtime.errors import PoisonError, TransientError
from runtime.retry import publishing
from runtime.telemetry import inject, meter

LIMIT_S = 30.0


class Outgoing(NamedTuple):
    """A message to store in a stream.

    Attributes:
        subject: Where; some stream must cover it.
        payload: At most the server's `max_payload` (1 MiB by default).
        msg_id: `Nats-Msg-Id`: the same id within the stream's window is stored once, which makes
            retries harmless.
        headers: Added to the id and the trace context.
    """

    subject: str
    payload: bytes
    msg_id: str
    headers: Mapping[str, str] | None = None


Result: TypeAlias = Stored | TransientError | PoisonError


class Publisher:
    """Publishes to JetStream and returns once the stream has the message.

    Safe to call concurrently; what is beyond `max_in_flight` waits. Messages start in order, but
    a retried one may come after its successors.
    """

    def __init__(self, bus: Bus, *, max_in_flight: int = 256, ack_timeout_s: float = 5.0) -> None:
        self._bus = bus
        self._acks = Acks(bus, max_in_flight=max_in_flight)
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
        limit_s: float = LIMIT_S,
    ) -> Stored:
        """Store one message, trying again for up to `limit_s`; see `Outgoing`.

        Raises:
            OverloadedError: The stream is full.
            TransientError: No server, no stream, or no ack in time.
            PoisonError: The message can never be stored, such as one that is too large.
        """
        messages = [Outgoing(subject, payload, msg_id, headers)]
        return _stored((await self.publish_all(messages, limit_s=limit_s))[0])

    async def publish_all(
        self, messages: Sequence[Outgoing], *, limit_s: float = LIMIT_S
    ) -> list[Result]:
        """Store messages side by side, each tried again for up to `limit_s`.

        Returns:
            For each, in their order, where it stands, or the error that `publish` would raise.
        """
        began_s = time.monotonic()
        # Nearly all are stored at once, and a policy costs more than a publish.
        results = await self._attempt(messages)
        failed = [n for n, result in enumerate(results) if isinstance(result, TransientError)]
        left_s = limit_s - (time.monotonic() - began_s)
        if failed and left_s > 0:
            again = (self._again(messages[number], left_s) for number in failed)
            for number, result in zip(failed, await asyncio.gather(*again), strict=True):
                results[number] = result
        stored = Counter(result.stream for result in results if isinstance(result, Stored))
        for stream, count in stored.items():
            self._published.add(count, {"stream": stream})
        return results

    async def _again(self, message: Outgoing, limit_s: float) -> Result:
        try:
            async for attempt in publishing(limit_s):
                with attempt:
                    return _stored((await self._attempt([message]))[0])
        except (TransientError, PoisonError) as error:
            return error
        raise AssertionError("a policy that neither succeeds nor raises")

    async def _attempt(self, messages: Sequence[Outgoing]) -> list[Result]:
        """Once each: send all, then take their answers."""
        answers, sent = _Answers(len(messages)), []
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._ack_timeout_s):
                    traced = inject()
                    for place, message in enumerate(messages):
                        take = partial(answers.take, place)
                        sent.append(await self._send(message, traced, take))
                    await answers.complete()
        finally:
            for number in sent:
                self._acks.forget(number)
        results = [
            result or _unstored(message, "no acknowledgement in time")
            for result, message in zip(answers.results, messages, strict=True)
        ]
        if failed := sum(isinstance(result, TransientError) for result in results):
            self._failed.add(failed)
        return results

    async def _send(
        self, message: Outgoing, traced: Mapping[str, str], take: Callable[[Result], None]
    ) -> str:
        """Returns its number, or nothing if it was not sent; what came of it is taken."""
        if not self._bus.connected:
            take(TransientError("not connected to NATS"))
            return ""
        headers = {**(message.headers or {}), Header.MSG_ID: message.msg_id, **traced}
        try:
            return await self._acks.send(message.subject, message.payload, headers, take)
        except nats.errors.MaxPayloadError as error:
            size = len(message.payload)
            detail = f"{size} bytes on {message.subject} pass NATS' max_payload"
            take(_caused(PoisonError("too_large", detail), error))
        except (nats.errors.Error, OSError) as error:
            take(_caused(_unstored(message, str(error) or type(error).__name__), error))
        return ""


class _Answers:
    """What came of messages that are sent side by side, in their order; None if nothing yet."""

    def __init__(self, count: int) -> None:
        self.results: list[Result | None] = [None] * count
        self._missing = count
        self._complete: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(self, place: int, result: Result) -> None:
        """What came of one; the first word holds."""
        if self.results[place] is not None:
            return
        self.results[place] = result
        self._missing -= 1
        if not self._missing and not self._complete.done():
            self._complete.set_result(None)

    async def complete(self) -> None:
        """Return once something came of each."""
        if self._missing:
            await self._complete


def _unstored(message: Outgoing, why: str) -> TransientError:
    return TransientError(f"{message.subject} was not stored: {why}")


def _caused(error: TransientError | PoisonError, cause: Exception) -> TransientError | PoisonError:
    error.__cause__ = cause
    return error


def _stored(result: Result) -> Stored:
    if isinstance(result, Stored):
        return result
    raise result
