"""Questions to whoever reads the store, and what an answer has to be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import msgspec

from gateway.errors import RefusedError, unavailable
from runtime.bus import Bus
from runtime.errors import TransientError
from schemas.codec import encode
from schemas.errors import ErrorInfo, MalformedMessageError


class Reply(Protocol):
    """An answer: an error, or what was asked for."""

    @property
    def error(self) -> ErrorInfo | None:
        """Why there is nothing else."""


class Owned(Protocol):
    """What is about one customer."""

    @property
    def customer_id(self) -> str:
        """Whose it is."""


R = TypeVar("R", bound=Reply)
T = TypeVar("T", bound=Owned)


class StoreQuestions:
    """Asks over the bus.

    Args:
        bus: The connection.
        timeout_s: How long an answer may take.
    """

    def __init__(self, bus: Bus, timeout_s: float) -> None:
        self._bus = bus
        self._timeout_s = timeout_s

    async def ask(self, subject: str, query: msgspec.Struct, decode: Callable[[bytes], R]) -> R:
        """The answer to a question, which is no error.

        Raises:
            RefusedError: It is one; or the bus is away.
            TransientError: There is none in time, or it makes no sense.
        """
        if not self._bus.connected:
            raise unavailable()
        answer = await self._bus.request(subject, encode(query), timeout_s=self._timeout_s)
        try:
            reply = decode(answer.data)
        except MalformedMessageError as error:
            raise TransientError(f"malformed answer: {error.detail}") from error
        if reply.error is not None:
            raise RefusedError(reply.error.code, reply.error.message)
        return reply


def of_customer(report: T | None, customer_id: str) -> T:
    """A report, which is about this customer.

    Raises:
        TransientError: It is about another one, or is none.
    """
    if report is None or report.customer_id != customer_id:
        raise TransientError("the answer is not for this customer")
    return report
