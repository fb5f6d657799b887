"""The connection to NATS: core messages, and the way to streams, consumers and buckets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import nats
import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext

from runtime.errors import FatalError, TransientError
from runtime.health import Health
from runtime.settings import CommonSettings
from runtime.telemetry import inject, redact

_log = structlog.get_logger("decisec.bus")

HEALTH_PART = "bus"


@dataclass(frozen=True, slots=True)
class Message:
    """A NATS message as it came, from a subject or out of a stream."""

    subject: str
    data: bytes
    headers: Mapping[str, str]
    reply: str

    @classmethod
    def of(cls, raw: Msg) -> Message:
        """The library's message as ours."""
        return cls(raw.subject, raw.data, raw.headers or {}, raw.reply)


Handler = Callable[[Message], Awaitable[bytes | None]]


class _Client(Client):
    """A client whose requests can always be cancelled, and which can always be closed.

    It waits by `asyncio.wait_for`, which on Python 3.11 swallows a cancellation that comes in the
    same turn of the loop as the answer: a task that asks again and again would never end.
    """

    async def close(self) -> None:
        """Close; what a broken connection does not take any more is given up with a word."""
        if not self.is_connected and self._pending_data_size:
            _log.warning("bus.unsent_given_up", size_bytes=self._pending_data_size)
            # Written to the broken transport, it raises, and the rest of the close is left out.
            self._pending, self._pending_data_size = [], 0
        await super().close()

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = 0.5,  # noqa: ASYNC109 - the library's own signature
        old_style: bool = False,
        headers: dict[str, Any] | None = None,
    ) -> Msg:
        try:
            return await super().request(subject, payload, timeout, old_style, headers)
        finally:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise asyncio.CancelledError


class Bus:
    """One connection, shared by a whole service. Reconnects for ever; says so in health.

    Attributes:
        epoch: Grows by one at each reconnect: what holds server-side state compares it.
    """

    def __init__(self, client: Client, name: str) -> None:
        self.name = name
        self.client = client
        self.js: JetStreamContext = client.jetstream(timeout=5)
        self.epoch = 0
        self._reconnected = asyncio.Condition()

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        settings: CommonSettings,
        *,
        name: str,
        health: Health | None = None,
        stop: asyncio.Event | None = None,
    ) -> AsyncIterator[Bus]:
        """A connected bus for the length of the block, drained at its end.

        Waits for a server that is not there yet, until `stop` is set.

        Raises:
            FatalError: `stop` was set first, or the server refuses the credentials.
        """
        health = health or Health()
        client = _Client()
        bus = cls(client, name)
        where = redact(settings.nats_url)
        health.unready(HEALTH_PART, f"not connected to {where}")

        async def disconnected() -> None:
            if client.is_draining or client.is_closed:
                return
            health.unready(HEALTH_PART, f"lost the connection to {where}")
            _log.warning("bus.disconnected", url=where)

        async def reconnected() -> None:
            health.ready(HEALTH_PART)
            async with bus._reconnected:
                bus.epoch += 1
                bus._reconnected.notify_all()
            _log.info("bus.reconnected", url=where, epoch=bus.epoch)

        async def failed(error: Exception) -> None:
            _log.warning("bus.error", error=redact(str(error)), kind=type(error).__name__)

        await _connect(
            client,
            stop,
            servers=settings.nats_url.split(","),
            name=name,
            user_credentials=settings.nats_credentials or None,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.1,
            ping_interval=10,
            disconnected_cb=disconnected,
            reconnected_cb=reconnected,
            error_cb=failed,
        )
        health.ready(HEALTH_PART)
        _log.info("bus.connected", url=where)
        try:
            yield bus
        finally:
            await _close(client)

    @property
    def connected(self) -> bool:
        """Whether the connection stands right now."""
        return self.client.is_connected

    async def reconnected_after(self, epoch: int) -> None:
        """Return once `epoch` is no longer the current one."""
        async with self._reconnected:
            await self._reconnected.wait_for(lambda: self.epoch != epoch)

    async def publish(
        self, subject: str, payload: bytes, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send a core message: at most once, with the trace context. Buffered while away.

        Raises:
            TransientError: The connection is closed or its buffer is full.
        """
        try:
            await self.client.publish(subject, payload, headers=inject(dict(headers or {})))
        except (nats.errors.Error, OSError) as error:
            raise TransientError(f"cannot publish on {subject}: {error}") from error

    async def request(
        self,
        subject: str,
        payload: bytes,
        *,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> Message:
        """Ask, and wait for one answer.

        Raises:
            TransientError: Nobody listens, or nobody answered in time.
        """
        try:
            answer = await self.client.request(
                subject, payload, timeout=timeout_s, headers=inject(dict(headers or {}))
            )
        except nats.errors.NoRespondersError as error:
            raise TransientError(f"nobody answers on {subject}") from error
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise TransientError(f"no answer on {subject} within {timeout_s} s") from error
        return Message.of(answer)

    async def subscribe(self, subject: str, handler: Handler, *, queue: str = "") -> Subscription:
        """Call `handler` with each core message; what it returns is sent as the answer, if any.

        The handler runs in the subscription's own task, one message at a time: it hands long
        work over. What it raises is logged and goes no further.
        """

        async def on_message(raw: Msg) -> None:
            message = Message.of(raw)
            try:
                answer = await handler(message)
                if answer is not None and message.reply:
                    await self.client.publish(message.reply, answer, headers=inject())
            except Exception:  # noqa: BLE001 - one bad message must not end the subscription
                _log.exception("message.failed", subject=subject)

        return await self.client.subscribe(subject, queue=queue, cb=on_message)


async def _connect(client: Client, stop: asyncio.Event | None, **options: object) -> None:
    async with asyncio.TaskGroup() as group:
        attempt = group.create_task(_attempt(client, options), name="bus-connect")
        if stop is None:
            return
        waiter = group.create_task(stop.wait(), name="bus-connect-stop")
        await asyncio.wait({attempt, waiter}, return_when=asyncio.FIRST_COMPLETED)
        waiter.cancel()
        if not attempt.done():
            attempt.cancel()
    if attempt.cancelled():
        await _close(client)
        raise FatalError("stopped before NATS could be reached")


async def _attempt(client: Client, options: dict[str, object]) -> None:
    try:
        await client.connect(**options)  # type: ignore[arg-type]
    except (nats.errors.Error, OSError) as error:
        raise FatalError(f"NATS refuses the connection: {redact(str(error))}") from error


async def _close(client: Client) -> None:
    try:
        # Draining waits for what was sent; it raises while the server is away.
        async with asyncio.timeout(3):
            await client.drain()
    except (nats.errors.Error, OSError, TimeoutError) as error:
        _log.warning("bus.drain_failed", error=redact(str(error)))
        try:
            await client.close()
        except (nats.errors.Error, OSError) as failure:
            # A connection that broke while reconnecting cannot take what was still to be sent.
            _log.warning("bus.close_failed", error=redact(str(failure)))
