"""What goes wrong with a customer's question, as an answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from batcher.windows import RefusedQueryError
from runtime.errors import FatalError, OverloadedError, PoisonError, TransientError
from schemas.errors import ErrorCode, ErrorInfo, InvalidIdError, MalformedMessageError

_log = structlog.get_logger("decisec.replies")

R = TypeVar("R")


async def replied(
    asked: Awaitable[R],
    subject: str,
    refusal: Callable[[ErrorInfo], R],
    *,
    less: str = "ask for less",
) -> R:
    """The reply that a question comes to.

    Args:
        asked: Makes the reply.
        subject: Of the question, for the log.
        refusal: Makes a reply of an error.
        less: What helps a store that is overloaded.
    """
    try:
        return await asked
    except (InvalidIdError, MalformedMessageError, RefusedQueryError) as error:
        return refusal(ErrorInfo(code=ErrorCode.BAD_REQUEST, message=str(error)))
    except OverloadedError as error:
        _log.warning("query.failed", subject=subject, error=str(error))
        words = f"the store is overloaded; try later, or {less}"
        return refusal(ErrorInfo(code=ErrorCode.UNAVAILABLE, message=words))
    except TransientError as error:
        _log.warning("query.failed", subject=subject, error=str(error))
        words = "the store is away; try again later"
        return refusal(ErrorInfo(code=ErrorCode.UNAVAILABLE, message=words))
    except (FatalError, PoisonError) as error:
        _log.error("query.failed", subject=subject, error=str(error))
        words = "the store refuses the query; see the log"
        return refusal(ErrorInfo(code=ErrorCode.INTERNAL, message=words))
