"""What the door on the bus tells of an error."""

from __future__ import annotations

import structlog

from gateway.errors import RefusedError, unavailable
from runtime.errors import TransientError
from schemas.errors import ErrorCode, ErrorInfo, InvalidIdError, MalformedMessageError

_log = structlog.get_logger("decisec.door")


def told(error: Exception) -> ErrorInfo:
    """A code and a sentence; of a defect no more than that there is one."""
    match error:
        case RefusedError():
            return error.info
        case TransientError():
            _log.warning("request.deferred", error=str(error))
            return unavailable().info
        case MalformedMessageError() | InvalidIdError():
            return ErrorInfo(code=ErrorCode.BAD_REQUEST, message=str(error))
        case _:
            _log.error("request.crashed", exc_info=error)
            return ErrorInfo(code=ErrorCode.INTERNAL, message="Something went wrong here.")
