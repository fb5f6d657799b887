"""Pull consumers at which one instance works at a time, as nats-server says which (its ADR-42).

The server gives a consumer's messages to one client only, the *pinned* one, and waits until that
one has not asked for any for `PIN_S`, or gives the pin back; then it pins another one of those
that ask. So instances need not agree on who works: they ask, and get messages or none.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import NamedTuple

import nats.errors
import nats.js.errors
import structlog
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from runtime.bus import Bus
from runtime.consumer import (
    Delivery,
    answered,
    consumer_sequence_of,
    delivery_of,
    set_up,
    status_of,
)
from runtime.errors import TransientError
from runtime.waiting import settle, stop_wakes

_log = structlog.get_logger("decisec.pinned")

PIN_S = 2.0
"""A pinned client that asks for nothing this long loses the pin."""

_EXPIRES_S = 1.0
_ASK_AGAIN_S = 0.5
_LOOK_S = 0.25
_SILENT_S = 3.0
_GROUP = "one"
_PIN = "Nats-Pin-Id"
_WRONG_PIN = "423"
_HEARTBEAT = "100"
_EXPIRED = "408"


@dataclass
class _PinnedConfig(ConsumerConfig):
    """What nats-py has no words for; the timeout in ns."""

    priority_groups: list[str] | None = None
    priority_policy: str | None = None
    priority_timeout: int | None = None


class _Arrival(NamedTuple):
    tenure: int
    message: Msg


@dataclass(slots=True)
class _Asked:
    """A request that stands at the server until a moment, for so many more messages."""

    until_s: float
    messages: int


class PinnedConsumer:
    """A durable pull consumer for one instance at a time; the others stand by.

    Args:
        bus: The connection.
        stream: Must exist; waited for if it does not.
        durable: Name; instances with the same one take turns.
        filter_subject: Only these.
        max_batch: Messages handed out at once at most.
        max_ack_pending: Messages delivered and not yet answered at most.
        ack_wait_s: A message whose instance is gone is delivered to the next one after this.
            That of a living one is renewed as long as `batches` goes on.

    Attributes:
        tenure: Of the batch handed out last. It grows when others may have been given messages
            since the batch before: what was concluded from the order of messages is void then.
        pinned: Whether the server has not told that another one is.
    """

    def __init__(
        self,
        bus: Bus,
        stream: str,
        durable: str,
        filter_subject: str,
        *,
        max_batch: int = 64,
        max_ack_pending: int = 1024,
        ack_wait_s: float = 3.0,
    ) -> None:
        self.durable = durable
        self.tenure = 0
        self.pinned = False
        self._stream = stream
        self._bus = bus
        self._max_batch = max_batch
        self._renew_s = ack_wait_s / 3
        self._config = _PinnedConfig(
            name=durable,
            durable_name=durable,
            deliver_policy=DeliverPolicy.ALL,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=ack_wait_s,
            max_deliver=-1,
            max_ack_pending=max_ack_pending,
            filter_subject=filter_subject,
            priority_groups=[_GROUP],
            priority_policy="pinned_client",
            priority_timeout=int(PIN_S * 1e9),
        )
        self._arrived: deque[_Arrival] = deque()
        self._in_hand: list[Delivery] = []
        self._wakeup = asyncio.Event()
        self._room = asyncio.Event()
        self._pin = ""
        self._tenure_now = 0
        self._last_sequence = 0
        self._asked: deque[_Asked] = deque()
        self._pulled_s = 0.0
        self._heard_s = 0.0
        self._missing = False

    async def ensure(self) -> None:
        """Create the consumer, or bring it up to date; waits for stream and server."""
        await set_up(self._bus, self._stream, self._config)

    async def batches(self, stop: asyncio.Event) -> AsyncIterator[list[Delivery]]:
        """Batches of 1 to `max_batch` deliveries of one tenure, until `stop` is set.

        What has arrived and was not handed out by then is given back to the server, and the pin
        with it.
        """
        async with asyncio.TaskGroup() as group:
            setting_up = group.create_task(self.ensure(), name=f"ensure-{self.durable}")
            stopped = group.create_task(stop.wait(), name="ensure-stop")
            await asyncio.wait({setting_up, stopped}, return_when=asyncio.FIRST_COMPLETED)
            setting_up.cancel()
            stopped.cancel()
        if stop.is_set():
            return
        inbox = self._bus.client.new_inbox()
        subscription = await self._bus.client.subscribe(inbox, cb=self._receive)
        tasks = [
            asyncio.create_task(self._ask(inbox), name=f"ask-{self.durable}"),
            asyncio.create_task(self._renew(), name=f"renew-{self.durable}"),
        ]
        handed_out_s = 0.0
        try:
            async with stop_wakes(stop, self._wakeup):
                while not stop.is_set():
                    await self._wakeup.wait()
                    self._wakeup.clear()
                    while self._arrived and not stop.is_set():
                        await settle(handed_out_s, len(self._arrived), self._max_batch)
                        batch = self._take()
                        handed_out_s = time.monotonic()
                        yield batch
                        # What was left unanswered is to come again.
                        self._in_hand = []
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            if self._bus.connected:
                await self._bus.client.end(subscription)
                await self._give_back()
            self._arrived.clear()

    def _take(self) -> list[Delivery]:
        self.tenure = self._arrived[0].tenure
        batch: list[Delivery] = []
        while (
            self._arrived
            and len(batch) < self._max_batch
            and self._arrived[0].tenure == self.tenure
        ):
            batch.append(delivery_of(self._arrived.popleft().message))
        self._in_hand = batch
        self._room.set()
        return batch

    async def _receive(self, message: Msg) -> None:
        self._heard_s = time.monotonic()
        status = status_of(message)
        if not status:
            self._follow(message)
            if self._asked:
                self._asked[0].messages -= 1
                if not self._asked[0].messages:
                    self._asked.popleft()
            self._arrived.append(_Arrival(self._tenure_now, message))
            self._wakeup.set()
        elif status == _EXPIRED:
            self._expire(0.0)
            self._room.set()
        elif status == _WRONG_PIN:
            if self.pinned:
                _log.warning("pin.lost", consumer=self.durable)
            self._pin, self.pinned = "", False
            self._asked.clear()
        elif status != _HEARTBEAT:
            # Consumer gone, leader moved, no responders.
            self._missing = True

    def _expire(self, grace_s: float) -> None:
        now_s = time.monotonic()
        while self._asked and self._asked[0].until_s + grace_s <= now_s:
            self._asked.popleft()

    def _follow(self, message: Msg) -> None:
        """Tell a new tenure from one that goes on.

        A new pin alone does not make one: a server that was started again has forgotten the old
        one. The consumer numbers what it gives to anybody, so a number left out tells of others.
        """
        pin = (message.headers or {}).get(_PIN, "")
        sequence = consumer_sequence_of(message)
        if pin != self._pin or not self.pinned:
            if sequence != self._last_sequence + 1 or not self._tenure_now:
                self._tenure_now += 1
            self._pin, self.pinned = pin, True
        self._last_sequence = sequence

    async def _ask(self, inbox: str) -> None:
        """Keep requests open at the server, and show it that this instance lives."""
        epoch = self._bus.epoch
        self._heard_s = time.monotonic()
        while True:
            if self._bus.connected:
                silent = time.monotonic() - self._heard_s > _SILENT_S
                if epoch != self._bus.epoch or self._missing or silent:
                    epoch, self._missing = self._bus.epoch, False
                    await self.ensure()
                    self._asked.clear()
                    self._heard_s = time.monotonic()
                await self._pull(inbox)
            self._room.clear()
            try:
                async with asyncio.timeout(_LOOK_S):
                    await self._room.wait()
            except TimeoutError:
                continue

    async def _pull(self, inbox: str) -> None:
        # The server says when a request has expired, but its word may be lost.
        self._expire(_ASK_AGAIN_S)
        now_s = time.monotonic()
        overdue = now_s - self._pulled_s >= _ASK_AGAIN_S
        room = self._max_batch - len(self._arrived) - sum(a.messages for a in self._asked)
        if room <= self._max_batch // 2:
            if not overdue:
                return
            room = 1  # only a pull keeps the pin
        request: dict[str, object] = {
            "batch": room,
            "expires": int(_EXPIRES_S * 1e9),
            "group": _GROUP,
        }
        if self._pin:
            request["id"] = self._pin
        subject = f"{self._bus.api}.CONSUMER.MSG.NEXT.{self._stream}.{self.durable}"
        try:
            await self._bus.client.publish(subject, json.dumps(request).encode(), reply=inbox)
        except (nats.errors.Error, OSError) as error:
            _log.warning("consumer.pull_failed", consumer=self.durable, error=str(error))
            return
        self._asked.append(_Asked(now_s + _EXPIRES_S, room))
        self._pulled_s = now_s

    async def _renew(self) -> None:
        """Start the ack wait anew of what has arrived and is not answered yet."""
        while True:
            await asyncio.sleep(self._renew_s)
            if not self._bus.connected:
                continue
            waiting = [arrival.message for arrival in self._arrived]
            for message in (*waiting, *(delivery.raw for delivery in self._in_hand)):
                if message.is_acked:
                    continue
                try:
                    await answered(message.in_progress())
                except TransientError as error:
                    _log.warning("ack.not_renewed", consumer=self.durable, error=str(error))
                    break

    async def _give_back(self) -> None:
        try:
            for arrival in self._arrived:
                await answered(arrival.message.nak())
            if self.pinned:
                await self._bus.request(
                    f"{self._bus.api}.CONSUMER.UNPIN.{self._stream}.{self.durable}",
                    json.dumps({"group": _GROUP}).encode(),
                    timeout_s=2.0,
                )
        except TransientError as error:
            # The ack wait and the pin's own end do the same, later.
            _log.warning("consumer.not_given_back", consumer=self.durable, error=str(error))
        self.pinned = False
