"""Pull consumers as batches: low latency when idle, large batches under load.

One pull request for many messages is kept open at the server and topped up when it is half
used. What has arrived is handed out at once, unless a batch was handed out just before: then its
successors have 20 ms to come along, because a batch costs more than a message.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime

import nats.errors
import nats.js.errors
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.api import AckPolicy, ConsumerConfig, ConsumerInfo, DeliverPolicy

from runtime.bus import Bus
from runtime.errors import TransientError
from runtime.retry import forever
from runtime.waiting import settle, stop_wakes

_log = structlog.get_logger("decisec.consumer")

_HEARTBEAT_S = 1.0
_EXPIRES_S = 30.0
_STATUS_HEARTBEAT = "100"
_REPLY_TOKENS = 9
_ACKS = "$JS.ACK."
_PULLS_PER_INBOX = 32
"""A server that passes requests on from another account remembers each until its inbox is gone."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message from a stream, to be answered by exactly one of ack, nak or term.

    Attributes:
        sequence: Its place in the stream.
        attempts: How often it was delivered, this time included.
    """

    raw: Msg
    subject: str
    data: bytes
    headers: Mapping[str, str]
    stream: str
    sequence: int
    attempts: int

    @property
    def recorded_at(self) -> datetime:
        """When the stream took the message, by the server's clock: the same on each delivery."""
        return self.raw.metadata.timestamp

    async def ack(self) -> None:
        """Done: never deliver it again. Lost acks lead to a redelivery."""
        await answered(self.raw.ack())

    async def ack_sync(self, timeout_s: float = 2.0) -> None:
        """Done, and wait until the server knows.

        Raises:
            TransientError: The server did not confirm in time.
        """
        await answered(self.raw.ack_sync(timeout=timeout_s))

    async def nak(self, delay_s: float = 0.0) -> None:
        """Not done: deliver it again after `delay_s`."""
        await answered(self.raw.nak(delay=delay_s or None))

    async def in_progress(self) -> None:
        """Still at work: start the ack wait anew."""
        await answered(self.raw.in_progress())

    async def term(self) -> None:
        """Never deliver it again, although it was not done; log why before."""
        await answered(self.raw.term())


class Consumer:
    """A durable pull consumer of one stream.

    Args:
        bus: The connection.
        stream: Must exist; waited for if it does not.
        durable: Name; instances with the same one share the work.
        filter_subjects: Only these; empty means all.
        max_batch: Messages handed out at once at most.
        max_ack_pending: Messages delivered and not yet answered at most, over all instances.
        ack_wait_s: After this without an answer a message is delivered again.
        sole: There is one instance at a time: what a former one took and did not answer comes
            again at once, not after the ack wait.
        gather: A batch that would be small waits 20 ms for more, if one was handed out just before.
            For what costs by the batch; whoever answers each message by itself wants it at once.
    """

    def __init__(
        self,
        bus: Bus,
        stream: str,
        durable: str,
        *,
        filter_subjects: tuple[str, ...] = (),
        max_batch: int = 64,
        max_ack_pending: int = 1024,
        ack_wait_s: float = 30.0,
        sole: bool = False,
        gather: bool = True,
    ) -> None:
        self.stream = stream
        self.durable = durable
        self._bus = bus
        self._max_batch = max_batch
        self._sole = sole
        self._gather = gather
        self._config = ConsumerConfig(
            # With its name and only filter in the subject of the request, permissions can tell it.
            name=durable,
            durable_name=durable,
            deliver_policy=DeliverPolicy.ALL,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=ack_wait_s,
            max_deliver=-1,
            max_ack_pending=max_ack_pending,
            filter_subject=filter_subjects[0] if len(filter_subjects) == 1 else None,
            filter_subjects=list(filter_subjects) if len(filter_subjects) > 1 else None,
        )
        self._arrived: deque[Msg] = deque()
        self._wakeup = asyncio.Event()
        self._open = 0
        self._inbox = ""
        self._subscription: Subscription | None = None
        self._pulls = 0

    async def ensure(self) -> None:
        """Create the consumer, or bring it up to date; waits for stream and server."""
        await set_up(self._bus, self.stream, self._config)

    async def _forget(self) -> None:
        """Remove the consumer, and with it what it knows of deliveries; the messages stay."""
        async for attempt in forever(f"consumer-{self.durable}"):
            with attempt:
                try:
                    await self._bus.js.delete_consumer(self.stream, self.durable)
                except nats.js.errors.NotFoundError:
                    return
                except (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError) as error:
                    raise TransientError(
                        f"cannot take over consumer {self.durable}: {error}"
                    ) from error

    async def pending(self) -> int:
        """Messages in the stream that this consumer has yet to answer.

        Raises:
            TransientError: The server did not say.
        """
        info = await info_of(self._bus, self.stream, self.durable)
        return (info.num_pending or 0) + (info.num_ack_pending or 0)

    async def ack_floor(self) -> int:
        """The place in the stream up to which every message of this consumer is answered.

        Raises:
            TransientError: The server did not say.
        """
        return floor_of(await info_of(self._bus, self.stream, self.durable))

    async def holds(self, *subjects: str) -> bool:
        """Whether the stream has a message with one of these subjects, without wildcards.

        Raises:
            TransientError: The server did not say.
        """
        found = await asyncio.gather(*(self._holds(subject) for subject in subjects))
        return any(found)

    async def _holds(self, subject: str) -> bool:
        try:
            await self._bus.js.get_last_msg(self.stream, subject, direct=True)
        except nats.js.errors.NotFoundError:
            return False
        except (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError) as error:
            raise TransientError(f"no word about {subject} in {self.stream}: {error}") from error
        return True

    async def batches(self, stop: asyncio.Event) -> AsyncIterator[list[Delivery]]:
        """Batches of 1 to `max_batch` deliveries, until `stop` is set.

        What has arrived and was not handed out by then is given back to the server.
        """
        if self._sole:
            await self._forget()
        await self.ensure()
        await self._open_inbox()
        try:
            async for batch in self._hand_out(stop):
                yield batch
        finally:
            # This also ends the pull request at the server.
            if self._bus.connected:
                await self._close_inbox()
                for message in self._arrived:
                    if not status_of(message):
                        await answered(message.nak())
            self._arrived.clear()

    async def _open_inbox(self) -> None:
        self._inbox = self._bus.client.new_inbox()
        self._subscription = await self._bus.client.subscribe(self._inbox, cb=self._receive)
        self._pulls = 0

    async def _close_inbox(self) -> None:
        if self._subscription is not None:
            await self._bus.client.end(self._subscription)
            self._subscription = None

    async def _hand_out(self, stop: asyncio.Event) -> AsyncIterator[list[Delivery]]:
        epoch = self._bus.epoch
        self._open = 0
        silences = 0
        handed_out_s = 0.0
        async with stop_wakes(stop, self._wakeup):
            while not stop.is_set():
                if epoch != self._bus.epoch:
                    epoch, self._open = self._bus.epoch, 0
                    await self.ensure()
                if self._open <= self._max_batch // 2 and self._bus.connected:
                    await self._top_up()
                if not self._arrived and not await self._wait():
                    silences += 1
                    if self._bus.connected and silences >= 2:
                        # Neither a message nor a heartbeat: the pull or the consumer is gone.
                        _log.warning("consumer.silent", consumer=self.durable)
                        self._open, silences = 0, 0
                        await self.ensure()
                    continue
                silences = 0
                if self._gather:
                    await settle(handed_out_s, len(self._arrived), self._max_batch)
                batch = self._take()
                handed_out_s = time.monotonic()
                if batch:
                    yield batch

    async def _wait(self) -> bool:
        self._wakeup.clear()
        try:
            async with asyncio.timeout(2 * _HEARTBEAT_S):
                await self._wakeup.wait()
        except TimeoutError:
            return False
        return True

    async def _receive(self, message: Msg) -> None:
        self._arrived.append(message)
        self._wakeup.set()

    async def _top_up(self) -> None:
        if self._pulls >= _PULLS_PER_INBOX:
            if self._open:
                return
            # Nothing is under way, so that nothing is lost with the old one.
            await self._close_inbox()
            await self._open_inbox()
        await self._pull(self._max_batch - self._open)

    async def _pull(self, batch: int) -> None:
        request = {
            "batch": batch,
            "expires": int(_EXPIRES_S * 1e9),
            "idle_heartbeat": int(_HEARTBEAT_S * 1e9),
        }
        subject = f"{self._bus.api}.CONSUMER.MSG.NEXT.{self.stream}.{self.durable}"
        try:
            await self._bus.client.publish(subject, json.dumps(request).encode(), reply=self._inbox)
        except (nats.errors.Error, OSError) as error:
            _log.warning("consumer.pull_failed", consumer=self.durable, error=str(error))
            return
        self._pulls += 1
        self._open += batch

    def _take(self) -> list[Delivery]:
        batch: list[Delivery] = []
        while self._arrived and len(batch) < self._max_batch:
            message = self._arrived.popleft()
            status = status_of(message)
            if not status:
                self._open = max(0, self._open - 1)
                batch.append(delivery_of(message))
            elif status != _STATUS_HEARTBEAT:
                # The pull request ended: expired, consumer gone, leader moved, no responders.
                left = (message.headers or {}).get("Nats-Pending-Messages")
                self._open = max(0, self._open - int(left)) if left else 0
        return batch


async def set_up(bus: Bus, stream: str, config: ConsumerConfig) -> None:
    """Create a durable consumer, or bring it up to date; waits for stream and server."""
    durable = config.durable_name
    async for attempt in forever(f"consumer-{durable}"):
        with attempt:
            try:
                await bus.js.add_consumer(stream, config)
            except (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError) as error:
                raise TransientError(
                    f"cannot set up consumer {durable} of {stream}: {error}"
                ) from error


async def info_of(bus: Bus, stream: str, durable: str) -> ConsumerInfo:
    """What the server knows of a consumer.

    Raises:
        TransientError: It did not say, or there is none.
    """
    try:
        info: ConsumerInfo = await bus.js.consumer_info(stream, durable)
    except (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError) as error:
        raise TransientError(f"no word about consumer {durable}: {error}") from error
    return info


def floor_of(info: ConsumerInfo) -> int:
    """The place in the stream up to which every message of a consumer is answered."""
    return info.ack_floor.stream_seq if info.ack_floor else 0


def status_of(message: Msg) -> str:
    """The status code of a message that is none of a stream's; empty for one that is.

    A message of a stream says where to acknowledge it, and may say anything else.
    """
    if message.data or not message.headers or message.reply.startswith(_ACKS):
        return ""
    return message.headers.get("Status", "")


def delivery_of(message: Msg) -> Delivery:
    """The library's message as ours."""
    stream, sequence, attempts = _origin(message)
    return Delivery(
        raw=message,
        subject=message.subject,
        data=message.data,
        headers=message.headers or {},
        stream=stream,
        sequence=sequence,
        attempts=attempts,
    )


def consumer_sequence_of(message: Msg) -> int:
    """The number of this delivery among all that the consumer has made."""
    tokens = message.reply.split(".")
    if len(tokens) == _REPLY_TOKENS:
        return int(tokens[6])
    sequence: int = message.metadata.sequence.consumer
    return sequence


def _origin(message: Msg) -> tuple[str, int, int]:
    """Stream, sequence and number of deliveries, out of the reply subject.

    `$JS.ACK.<stream>.<consumer>.<deliveries>.<sequence>.<consumer sequence>.<time>.<pending>`;
    nats-py reads all of it, dates too, which takes five times as long. What looks otherwise
    (with a domain) it may read itself.
    """
    tokens = message.reply.split(".")
    if len(tokens) == _REPLY_TOKENS:
        return tokens[2], int(tokens[5]), int(tokens[4])
    metadata = message.metadata
    return metadata.stream, metadata.sequence.stream, metadata.num_delivered


async def answered(answer: object) -> None:
    """Await the library's answer to a delivery.

    Raises:
        TransientError: It could not be sent.
    """
    try:
        await answer  # type: ignore[misc]
    except (nats.errors.Error, OSError, TimeoutError) as error:
        raise TransientError(f"could not answer a delivery: {error}") from error
