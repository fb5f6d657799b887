"""nats-py's client, with what a long-lived service needs of it besides."""

from __future__ import annotations

import asyncio
import re
import ssl
from typing import Any

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from runtime.wire import MessageParser, text_of

_log = structlog.get_logger("decisec.bus")

_VIOLATION = re.compile(
    r"permissions violation for (publish|subscription)[^\"]*\"([^\"]+)\"", re.IGNORECASE
)
_REFUSALS = ("authorization violation", "authentication revoked", "authentication expired")
_REFUSED_AGAIN_S = 2.0
"""Between tries of one whom the server knows no more: each costs both sides a handshake."""


class RefusedError(nats.errors.Error):
    """The server does not let this user publish on a subject."""


class PlaintextError(nats.errors.Error):
    """The server does not encrypt, and this client wants nothing else."""


class ServiceClient(Client):
    """A client that can always be cancelled and closed, and never waits for what is not permitted.

    nats-py waits by `asyncio.wait_for`, which on Python 3.11 swallows a cancellation that comes in
    the same turn of the loop as the answer: a task that asks again and again would never end. A
    request that the server does not permit it would wait for until the timeout; and when the server
    throws a user out it closes for good.

    Args:
        encrypted: Do not talk to a server that does not encrypt.
    """

    def __init__(self, *, encrypted: bool = False) -> None:
        super().__init__()
        self._ps = MessageParser(self)
        self._encrypted = encrypted
        self._asked: dict[str, set[asyncio.Future[None]]] = {}

    async def close(self) -> None:
        """Close; what a broken connection does not take any more is given up with a word."""
        if not self.is_connected and self._pending_data_size:
            _log.warning("bus.unsent_given_up", size_bytes=self._pending_data_size)
            # Written to the broken transport, it raises, and the rest of the close is left out.
            self._pending, self._pending_data_size = [], 0
        await super().close()

    async def flush(self, timeout: int = 10) -> None:  # noqa: ASYNC109 - the library's own signature
        """Return once the server has taken all that was sent before.

        The library's ping goes past what waits to be written, a subscription above all.
        """
        if self.is_connected:
            await self._flush_pending(force_flush=True)
        await super().flush(timeout)

    async def end(self, subscription: Subscription, within_s: float = 2.0) -> None:
        """End a subscription once all that the server has sent for it has been handed over.

        What is on the wire when one unsubscribes is thrown away by the library; from a stream it
        comes again only after the ack wait.
        """
        try:
            async with asyncio.timeout(within_s):
                await subscription.drain()  # type: ignore[no-untyped-call]
        except (nats.errors.Error, OSError, TimeoutError) as error:
            _log.warning("subscription.cut_off", error=str(error))
        finally:
            # The library does this only when all went well.
            subscription._stop_processing()  # noqa: SLF001
            self._remove_sub(subscription._id)  # noqa: SLF001

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = 0.5,  # noqa: ASYNC109 - the library's own signature
        old_style: bool = False,
        headers: dict[str, Any] | None = None,
    ) -> Msg:
        """Ask, and wait for the answer.

        Raises:
            RefusedError: The server does not permit to ask this.
        """
        loop = asyncio.get_running_loop()
        refused: asyncio.Future[None] = loop.create_future()
        # The library tells of errors in lower case.
        asked = self._asked.setdefault(subject.lower(), set())
        asked.add(refused)
        answer = loop.create_task(
            super().request(subject, payload, timeout, old_style, headers), name="request"
        )
        try:
            waited: set[asyncio.Future[Any]] = {answer, refused}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if refused.done():
                raise RefusedError(f"the server does not permit to publish on {subject}")
            return answer.result()
        finally:
            asked.discard(refused)
            if not asked:
                self._asked.pop(subject.lower(), None)
            refused.cancel()
            if not answer.done():
                answer.cancel()
                await asyncio.wait({answer})
            if not answer.cancelled():
                answer.exception()

    def refused(self, violation: str) -> None:
        """End the requests that a violation concerns."""
        found = _VIOLATION.search(violation)
        if found and found[1].lower() == "publish":
            for waiting in self._asked.get(found[2].lower(), ()):
                if not waiting.done():
                    waiting.set_result(None)

    async def _process_headers(self, headers: bytes | None) -> dict[str, str] | None:
        try:
            found: dict[str, str] | None = await super()._process_headers(headers)
        except (ValueError, IndexError):
            # Whoever wrote them meant no good: a message without headers is what is left.
            return None
        return found

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg:
        return self.msg_class(
            subject=text_of(subject),
            reply=text_of(reply),
            data=data,
            headers=headers,
            _client=self,
            _sid=sid,
        )

    async def _process_connect_init(self) -> None:
        try:
            await super()._process_connect_init()
        except (ssl.SSLError, TimeoutError, ConnectionError):
            # After a handshake that failed its writer never hears that the connection is gone, and
            # whoever closes it and waits for that waits for ever.
            if self._transport is not None:
                self._transport.close()  # type: ignore[no-untyped-call]
                self._transport = None
            raise

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if self._encrypted and initial_connection and not info.get("tls_required"):
            # The library would go on in plain text, which is what somebody in between wants.
            raise PlaintextError("nats: the server does not encrypt its connections")
        await super()._process_info(info, initial_connection)

    async def _process_err(self, err_msg: str) -> None:
        if is_refusal(err_msg):
            # Thrown out, but perhaps by a mistake that somebody puts right.
            await self._error_cb(nats.errors.AuthorizationError())
            await self._process_op_err(nats.errors.AuthorizationError())
            return
        await super()._process_err(err_msg)


def is_violation(text: str) -> bool:
    """Whether the server says that something is not permitted to this user."""
    return _VIOLATION.search(text) is not None


def is_refusal(text: str) -> bool:
    """Whether the server says that it does not know this user, or no more."""
    return any(words in text.lower() for words in _REFUSALS)


async def wait_after_refusal() -> None:
    """Let time pass before the next try."""
    await asyncio.sleep(_REFUSED_AGAIN_S)
