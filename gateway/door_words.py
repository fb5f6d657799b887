"""What the door on the bus calls things: acts and their targets, and errors."""

from __future__ import annotations

import structlog

from gateway.errors import RefusedError, unavailable
from runtime.errors import TransientError
from schemas.errors import ErrorCode, ErrorInfo, InvalidIdError, MalformedMessageError
from schemas.requests import Request

_log = structlog.get_logger("decisec.door")

_ACTIONS = {
    "list": "list-vms",
    "console": "get-console",
    "check-network": "check-network",
    "operation": "get-operation",
    "operations": "list-operations",
    "snapshots": "list-snapshots",
    "snapshot-get": "get-snapshot",
    "snapshot-delete": "delete-snapshot",
    "images": "list-images",
    "peers": "list-peers",
    "peer-add": "add-peer",
    "peer-remove": "remove-peer",
    "usage": "get-usage",
    "metrics": "get-series",
    "events": "get-events",
    "audit": "get-audit",
}


def action_of(verb: str) -> str:
    """As the HTTP door calls it."""
    return _ACTIONS.get(verb, f"{verb}-vm")


def target_of(request: Request) -> str:
    """What a request is about, as the audit tells it."""
    named = ((name, getattr(request, f"{name}_id", None)) for name in ("vm", "snapshot", "peer"))
    return " ".join(f"{name} {value}" for name, value in named if value is not None)


def info_of(error: Exception) -> ErrorInfo:
    """What a reply says of an error, whatever it is."""
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
