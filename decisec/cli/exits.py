"""Exit codes, and the one place where an error becomes a code and a sentence."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import httpx


class Exit(IntEnum):
    """What the shell sees. docs/cli.md says the same, and is checked by it.

    Attributes:
        OK: Done.
        FAILED: It failed, or something is not as it should be.
        USAGE: Wrong usage, or input that is refused; the same again is refused again.
        UNREACHABLE: Not reachable, or not available now; the same again may work.
        NOT_FOUND: It is not there, or not yours.
        DENIED: No token, one that is not taken, or one that may not do this.
        NOT_DONE: Accepted, and not done within the time that was to be waited.
        INTERRUPTED: By Ctrl-C.
    """

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    NOT_FOUND = 4
    DENIED = 5
    NOT_DONE = 6
    INTERRUPTED = 130


EPILOG = (
    "Exit codes: 0 done; 1 failed; 2 wrong usage or refused input; 3 not reachable or not "
    "available now; 4 not found; 5 denied; 6 not done in time; 130 interrupted."
)


class CommandError(Exception):
    """A command that cannot go on.

    Args:
        message: A clear sentence that says what to do.
        code: What the shell sees.
        kind: Stable snake_case word for scripts.
    """

    def __init__(
        self, message: str, code: Exit = Exit.FAILED, kind: str = "failed", status: int = 0
    ) -> None:
        super().__init__(message)
        self.failure = Failure(message, code, kind, status)


class Failure(NamedTuple):
    """An error as it is told: `status` is the API's HTTP status, 0 if it has none."""

    message: str
    code: Exit
    kind: str
    status: int = 0


_OF_STATUS = {
    400: Exit.USAGE,
    401: Exit.DENIED,
    403: Exit.DENIED,
    404: Exit.NOT_FOUND,
    413: Exit.USAGE,
    422: Exit.USAGE,
    429: Exit.UNREACHABLE,
    503: Exit.UNREACHABLE,
    504: Exit.UNREACHABLE,
}

_OF_CODE = {
    "bad_request": Exit.USAGE,
    "unsupported": Exit.USAGE,
    "unknown_image": Exit.USAGE,
    "forbidden": Exit.DENIED,
    "not_found": Exit.NOT_FOUND,
    "no_capacity": Exit.UNREACHABLE,
    "unavailable": Exit.UNREACHABLE,
    "deadline_exceeded": Exit.UNREACHABLE,
}
"""Of operations that failed, as the API's status would have it for one that it waited for."""

_TO_DO = {
    "unauthenticated": "Get another one (`decisec token`, for a local stack), or see where this "
    "one comes from: `decisec context show`, DECISEC_TOKEN",
    "forbidden": "`decisec whoami` shows the scopes of the token, `decisec quota` what is left",
    "not_found": "It is not there, or not yours: `decisec whoami` shows who you are",
    "unknown_image": "`decisec image offered` lists the images that there are",
    "unexpected_answer": "Is the address right (`decisec context show`, DECISEC_API_URL)?",
}
"""What commands can say beyond what the API, which knows no commands, says itself."""


def failure_of(error: Exception) -> Failure | None:
    """What to tell of an error; None for one that only a defect can raise."""
    # Loaded only once something has failed: `--help` must stay quick.
    import httpx

    from decisec.dev.errors import StackError
    from decisec.sdk.errors import ApiError, ConfigurationError, OperationFailedError
    from runtime.errors import FatalError, TransientError

    match error:
        case CommandError():
            return error.failure
        case ApiError(problem=problem):
            fields = "; ".join(f"{wrong.field}: {wrong.message}" for wrong in problem.errors)
            message = fields or problem.detail or problem.title
            if error.status == httpx.codes.UNAUTHORIZED:
                message = f"the token is refused: {message}"
            if (what_to_do := _TO_DO.get(problem.code)) and not fields:
                message = f"{message.rstrip('.')}. {what_to_do}"
            code = _OF_STATUS.get(error.status, Exit.FAILED)
            return Failure(message, code, problem.code, error.status)
        case OperationFailedError(operation=operation):
            kind = str(operation.error.code) if operation.error else "failed"
            return Failure(str(error), _OF_CODE.get(kind, Exit.FAILED), kind)
        case ConfigurationError():
            return Failure(str(error), Exit.USAGE, "bad_configuration")
        case httpx.TransportError():
            return Failure(_unreachable(error), Exit.UNREACHABLE, "unreachable")
        case TransientError():
            return Failure(str(error), Exit.UNREACHABLE, "unavailable")
        case StackError() | FatalError():
            return Failure(str(error), Exit.FAILED, "failed")
        case _:
            return None


def _unreachable(error: httpx.TransportError) -> str:
    from runtime.telemetry import redact

    reason = str(error) or type(error).__name__
    url = error.request.url
    where = redact(f"{url.scheme}://{url.netloc.decode()}")
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        return (
            f"the API at {where} shows a certificate that is not trusted: {reason}. Name its "
            "authority: DECISEC_API_CA, or `decisec context set NAME --api-ca FILE`"
        )
    return (
        f"the API at {where} cannot be reached: {reason}. Is it up, and is the address right "
        "(`decisec context show`, DECISEC_API_URL)?"
    )
