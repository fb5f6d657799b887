"""Questions about a VM that its host answers, `vm.ask.<host>.<vm>.<what>`: how they are asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import structlog

from gateway.errors import RETRY_AFTER_S, RefusedError, no_such_vm
from runtime.bus import Bus
from runtime.errors import TransientError
from schemas.errors import ErrorCode, ErrorInfo, MalformedMessageError

_log = structlog.get_logger("decisec.questions")

T = TypeVar("T")


class SilentError(TransientError):
    """The host does not answer."""


async def reply(
    bus: Bus, subject: str, question: bytes, decode: Callable[[bytes], T], timeout_s: float
) -> T:
    """What the host says.

    Raises:
        SilentError: It says nothing in time.
        TransientError: What it says makes no sense.
    """
    try:
        answer = await bus.request(subject, question, timeout_s=timeout_s)
    except TransientError as error:
        raise SilentError(str(error)) from error
    try:
        return decode(answer.data)
    except MalformedMessageError as error:
        raise TransientError(f"malformed reply on {subject}: {error.detail}") from error


@contextmanager
def refusals(host_id: str) -> Iterator[None]:
    """Refuse what a host does not answer.

    Raises:
        RefusedError: UNAVAILABLE.
    """
    try:
        yield
    except SilentError as error:
        _log.info("host.not_answering", host_id=host_id, error=str(error))
        raise RefusedError(
            ErrorCode.UNAVAILABLE,
            "The host of this VM does not answer; try again.",
            retry_after_s=RETRY_AFTER_S,
        ) from error


def refusal(error: ErrorInfo) -> RefusedError:
    """What a host has refused, as whoever asked is told."""
    match error.code:
        case ErrorCode.NOT_FOUND:
            return no_such_vm()
        case ErrorCode.RATE_LIMITED:
            return RefusedError(error.code, error.message, retry_after_s=RETRY_AFTER_S)
        case _:
            return RefusedError(error.code, error.message)
