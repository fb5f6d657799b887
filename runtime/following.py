"""A stream read along in its order, from a place on, beside its consumers, which notice nothing."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from uuid import uuid4

import nats.errors
import nats.js.errors
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from runtime.bus import Bus
from runtime.consumer import Delivery, consumer_sequence_of, delivery_of, status_of
from runtime.errors import TransientError

_log = structlog.get_logger("decisec.following")

_FAILURES = (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError)
_BATCH = 128
_HEARTBEAT_S = 1.0
_EXPIRES_S = 30.0
_FORGET_S = 30.0
"""The server drops what a reader that was killed has left there."""
_CLOSE_S = 2.0
_HEARTBEAT = "100"


@dataclass(frozen=True, slots=True)
class Extent:
    """What a stream holds.

    Attributes:
        born: When it was made: sequences of another one mean nothing here.
        first: Sequence of the oldest message.
        last: Sequence of the newest; before `first` if it is empty.
    """

    born: str
    first: int
    last: int


async def extent_of(bus: Bus, stream: str) -> Extent:
    """What a stream holds at the moment.

    Raises:
        TransientError: The server did not say, or there is no such stream.
    """
    try:
        info = await bus.js.stream_info(stream)
    except _FAILURES as error:
        raise TransientError(f"no word about {stream}: {error}") from error
    born = info.created.isoformat() if info.created else ""
    return Extent(born, info.state.first_seq, info.state.last_seq)


class Follower:
    """The messages of a stream after a sequence, without a hole, whatever breaks in between.

    Args:
        bus: The connection.
        stream: Not a work queue.
        after: Begin behind this sequence.
        filters: Subjects, wildcards allowed, none within another; empty for all.

    Attributes:
        position: Sequence of the message handed out last, or `after`.
        behind: Messages that are still to come, as far as the server has said; None before it has.
    """

    def __init__(self, bus: Bus, stream: str, after: int, filters: tuple[str, ...] = ()) -> None:
        self.position = after
        self.behind: int | None = None
        self._bus = bus
        self._stream = stream
        self._filters = filters
        self._name = ""
        self._subscription: Subscription | None = None
        self._arrived: deque[Msg] = deque()
        self._wakeup = asyncio.Event()
        self._epoch = -1
        self._asked = 0
        self._delivered = 0

    async def __aenter__(self) -> Self:
        """The follower itself; the first `next` sets it up."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove what it has at the server."""
        await self.close()

    async def next(self, within_s: float) -> list[Delivery]:
        """The next messages in their order; empty if none came in time. They need no ack.

        Raises:
            TransientError: The server is away. The next call goes on where this one stopped.
        """
        try:
            async with asyncio.timeout(within_s):
                while True:
                    await self._ensure()
                    if batch := self._take():
                        return batch
                    if not await self._woken():
                        _log.warning("follower.silent", stream=self._stream)
                        await self.close()
        except TimeoutError:
            return []

    async def caught_up(self) -> bool:
        """Whether everything that the stream held when this was opened is handed out.

        Raises:
            TransientError: The server is away.
        """
        await self._ensure()
        return not self.behind

    async def close(self) -> None:
        """Let go of everything here and at the server, which forgets the rest by itself."""
        name, self._name = self._name, ""
        subscription, self._subscription = self._subscription, None
        self._arrived.clear()
        if not self._bus.connected:
            return
        try:
            async with asyncio.timeout(_CLOSE_S):
                if subscription is not None:
                    await subscription.unsubscribe()
                if name:
                    await self._bus.js.delete_consumer(self._stream, name)
        except _FAILURES as error:
            _log.debug("follower.not_closed", stream=self._stream, error=str(error))

    async def _ensure(self) -> None:
        if self._name and self._epoch == self._bus.epoch:
            return
        await self.close()
        self._epoch = self._bus.epoch
        name = f"follower-{uuid4().hex}"
        config = ConsumerConfig(
            name=name,
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=self.position + 1,
            ack_policy=AckPolicy.NONE,
            filter_subjects=list(self._filters) or None,
            inactive_threshold=_FORGET_S,
            mem_storage=True,
            num_replicas=1,
        )
        try:
            info = await self._bus.js.add_consumer(self._stream, config)
            self._inbox = self._bus.client.new_inbox()
            self._subscription = await self._bus.client.subscribe(self._inbox, cb=self._receive)
        except _FAILURES as error:
            raise TransientError(f"{self._stream} cannot be followed: {error}") from error
        self._name, self._asked, self._delivered = name, 0, 0
        self.behind = info.num_pending or 0

    async def _receive(self, message: Msg) -> None:
        self._arrived.append(message)
        self._wakeup.set()

    async def _woken(self) -> bool:
        """Ask for more and wait; false if not even a heartbeat came."""
        if self._asked <= _BATCH // 2:
            await self._pull(_BATCH - self._asked)
        self._wakeup.clear()
        if self._arrived or not self._name:
            return True
        try:
            async with asyncio.timeout(3 * _HEARTBEAT_S):
                await self._wakeup.wait()
        except TimeoutError:
            return not self._bus.connected
        return True

    async def _pull(self, batch: int) -> None:
        request = {
            "batch": batch,
            "expires": int(_EXPIRES_S * 1e9),
            "idle_heartbeat": int(_HEARTBEAT_S * 1e9),
        }
        subject = f"{self._bus.api}.CONSUMER.MSG.NEXT.{self._stream}.{self._name}"
        try:
            await self._bus.client.publish(subject, json.dumps(request).encode(), reply=self._inbox)
        except (nats.errors.Error, OSError) as error:
            raise TransientError(f"{self._stream} cannot be followed: {error}") from error
        self._asked += batch

    def _take(self) -> list[Delivery]:
        batch: list[Delivery] = []
        while self._arrived:
            message = self._arrived.popleft()
            status = status_of(message)
            if status == _HEARTBEAT:
                continue
            if status:
                # Expired, or the consumer is gone, or nobody answers: only the first says how many.
                left = (message.headers or {}).get("Nats-Pending-Messages")
                if left is None:
                    self._name = ""
                    break
                self._asked = max(0, self._asked - int(left))
                continue
            self._delivered += 1
            if consumer_sequence_of(message) != self._delivered:
                _log.warning("follower.hole", stream=self._stream, after=self.position)
                self._name = ""
                break
            self._asked = max(0, self._asked - 1)
            delivery = delivery_of(message)
            self.position = delivery.sequence
            self.behind = message.metadata.num_pending
            batch.append(delivery)
        return batch
