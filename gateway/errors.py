"""What the gateway refuses a request with, whichever door it came through."""

from __future__ import annotations

from collections.abc import Mapping

from schemas.api import FieldProblem
from schemas.errors import ErrorCode, ErrorInfo

RETRY_AFTER_S = 1.0
"""What a caller is told to wait when nothing better is known."""


class RefusedError(Exception):
    """The request fails; nothing that it asked for has happened, or `code` says what did.

    Attributes:
        code: Stable code.
        message: A sentence for the caller; never a secret, never another customer's data.
        retry_after_s: When a further try makes sense, if ever.
        fields: What is wrong with which field.
        headers: For the HTTP door.
        unsure: Whether what was asked for has happened is not known.
        decided: Something has come of the request; asking again would be another request.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        retry_after_s: float | None = None,
        fields: tuple[FieldProblem, ...] = (),
        headers: Mapping[str, str] | None = None,
        status: int | None = None,
        unsure: bool = False,
        decided: bool = False,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s
        self.fields = fields
        self.headers = headers or {}
        self.status = status
        self.unsure = unsure
        self.decided = decided

    @property
    def info(self) -> ErrorInfo:
        """For an operation or an answer on the bus."""
        return ErrorInfo(code=self.code, message=self.message)


def no_such_vm() -> RefusedError:
    """A VM that is missing, deleted, or another customer's: one answer for all three."""
    return RefusedError(ErrorCode.NOT_FOUND, "There is no such VM.")


def unavailable() -> RefusedError:
    """Something behind the gateway is away."""
    return RefusedError(
        ErrorCode.UNAVAILABLE,
        "The service cannot do this at the moment. Nothing was changed; try again.",
        retry_after_s=RETRY_AFTER_S,
    )
