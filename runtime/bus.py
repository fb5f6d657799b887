"""The connection to NATS: core messages, and the way to streams, consumers and buckets."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext

from runtime.client import (
    PlaintextError,
    RefusedError,
    ServiceClient,
    is_refusal,
    is_violation,
    wait_after_refusal,
)
from runtime.credentials import API_PREFIX, is_inbox, read_credentials, tls_context
from runtime.errors import FatalError, TransientError
from runtime.health import Health
from runtime.settings import CommonSettings
from runtime.telemetry import inject, redact

_log = structlog.get_logger("decisec.bus")

HEALTH_PART = "bus"
PERMISSIONS_PART = "permissions"
_VIOLATED_S = 30.0
"""So long the last violation stands in health."""


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


class Bus:
    """One connection, shared by a whole service. Reconnects for ever; says so in health.

    Attributes:
        api: What JetStream's requests begin with.
        epoch: Grows by one at each reconnect: what holds server-side state compares it.
    """

    def __init__(self, client: ServiceClient, name: str, api: str = API_PREFIX) -> None:
        self.name = name
        self.client = client
        self.api = api
        self.js: JetStreamContext = client.jetstream(timeout=5, prefix=api)
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
            SettingsError: The credentials or a file for TLS cannot be used.
            FatalError: `stop` was set first, the server refuses the credentials, or it cannot
                prove who it is.
        """
        health = health or Health()
        credentials = read_credentials(settings.nats_credentials)
        tls = tls_context(settings)
        client = ServiceClient(encrypted=tls is not None)
        bus = cls(client, name, credentials.api)
        where = redact(settings.nats_url)
        health.unready(HEALTH_PART, f"not connected to {where}")
        refused: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        watch = _Violations(health)

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
            text = redact(str(error))
            if is_violation(text):
                client.refused(text)
                watch.note(text)
            elif why := _no_hope(error):
                health.unready(HEALTH_PART, f"{where}: {why}")
                _log.error("bus.refused", url=where, error=text, reason=why)
                if not refused.done():
                    refused.set_result(why)
                await wait_after_refusal()
            else:
                _log.warning("bus.error", error=text, kind=type(error).__name__)

        options: dict[str, object] = {"tls": tls} if tls is not None else {}
        if credentials.jwt_file:
            options["user_credentials"] = credentials.jwt_file
        elif credentials.seed:
            options["nkeys_seed_str"] = credentials.seed
        await _connect(
            client,
            stop,
            refused,
            servers=settings.nats_url.split(","),
            name=name,
            inbox_prefix=credentials.inbox_prefix,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.1,
            ping_interval=10,
            disconnected_cb=disconnected,
            reconnected_cb=reconnected,
            error_cb=failed,
            **options,
        )
        health.ready(HEALTH_PART)
        _log.info("bus.connected", url=where)
        try:
            yield bus
        finally:
            watch.close()
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
        except RefusedError as error:
            raise TransientError(str(error)) from error
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise TransientError(f"no answer on {subject} within {timeout_s} s") from error
        return Message.of(answer)

    async def subscribe(self, subject: str, handler: Handler, *, queue: str = "") -> Subscription:
        """Call `handler` with each core message; what it returns is sent as the answer, if any.

        The handler runs in the subscription's own task, one message at a time: it hands long
        work over. What it raises is logged and goes no further. A reply subject that is no inbox
        is left out, and so nothing is answered there.
        """

        async def on_message(raw: Msg) -> None:
            message = Message.of(raw)
            if message.reply and not is_inbox(message.reply):
                _log.warning("reply.refused", subject=subject, reply=message.reply[:120])
                message = replace(message, reply="")
            try:
                answer = await handler(message)
                if answer is not None and message.reply:
                    await self.client.publish(message.reply, answer, headers=inject())
            except Exception:  # noqa: BLE001 - one bad message must not end the subscription
                _log.exception("message.failed", subject=subject)

        return await self.client.subscribe(subject, queue=queue, cb=on_message)


class _Violations:
    """Says in log and health what the server did not permit, until a while after the last time."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._over: asyncio.TimerHandle | None = None

    def note(self, text: str) -> None:
        """Note one."""
        _log.error("bus.not_permitted", error=text)
        self._health.unready(PERMISSIONS_PART, f"not permitted on the bus: {text}")
        self.close()
        self._over = asyncio.get_running_loop().call_later(
            _VIOLATED_S, self._health.ready, PERMISSIONS_PART
        )

    def close(self) -> None:
        """Wait no longer for the end of the last one."""
        if self._over is not None:
            self._over.cancel()


def _no_hope(error: Exception) -> str:
    """Why it is of no use to try again as things are; empty if it may be."""
    text = str(error)
    if isinstance(error, nats.errors.AuthorizationError) or is_refusal(text):
        return "NATS refuses the credentials: they are unknown to it, or revoked"
    if isinstance(error, PlaintextError):
        return "the server does not encrypt, and tls:// or DECISEC_NATS_CA wants it to"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is not to be trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"no encrypted connection: {error.reason or text}"
    return ""


async def _connect(
    client: Client, stop: asyncio.Event | None, refused: asyncio.Future[str], **options: object
) -> None:
    async with asyncio.TaskGroup() as group:
        attempt = group.create_task(_attempt(client, options), name="bus-connect")
        waiter = group.create_task((stop or asyncio.Event()).wait(), name="bus-connect-stop")
        waited: set[asyncio.Future[Any]] = {attempt, waiter, refused}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        waiter.cancel()
        if not attempt.done():
            attempt.cancel()
    if attempt.cancelled():
        await _close(client)
        raise FatalError(
            refused.result() if refused.done() else "stopped before NATS could be reached"
        )
    refused.cancel()


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
