"""What the SDK raises when the API says no. Connection errors stay httpx's own."""

from __future__ import annotations

from collections.abc import Mapping

from schemas.api import OperationView, Problem
from schemas.errors import ErrorCode
from schemas.event_lists import StreamNotice


class ConfigurationError(ValueError):
    """There is no token, or the base URL is none."""


class ApiError(Exception):
    """The API refused, or an operation failed.

    Attributes:
        problem: The problem as the API told it; `problem.code` is stable.
        status: HTTP status.
        retry_after_s: When a further try makes sense, if the API said so.
    """

    def __init__(self, problem: Problem, status: int, retry_after_s: float | None = None) -> None:
        parts = [f"{status} {problem.code}"]
        if problem.detail:
            parts.append(problem.detail)
        if problem.trace_id:
            parts.append(f"(trace {problem.trace_id})")
        super().__init__(": ".join(parts[:2]) + "".join(f" {part}" for part in parts[2:]))
        self.problem = problem
        self.status = status
        self.retry_after_s = retry_after_s


class BadRequestError(ApiError):
    """400: `problem.errors` names the fields."""


class UnauthenticatedError(ApiError):
    """401: the token is missing, expired or not valid."""


class ForbiddenError(ApiError):
    """403: the token lacks a scope, the customer is suspended, or a quota is used up."""


class NotFoundError(ApiError):
    """404: it is not there, or not yours."""


class ConflictError(ApiError):
    """409."""


class PreconditionFailedError(ApiError):
    """412: the VM has changed since the generation that was given."""


class IllegalTransitionError(ConflictError):
    """409: the VM's state does not allow it."""


class PayloadTooLargeError(ApiError):
    """413."""


class UnknownImageError(ApiError):
    """422: no host has the image."""


class UnknownPricePlanError(ApiError):
    """422: there is no such price plan."""


class RateLimitedError(ApiError):
    """429."""


class UnavailableError(ApiError):
    """503: try again."""


class NoCapacityError(UnavailableError):
    """503: no host can take the VM now."""


class DeadlineExceededError(ApiError):
    """504: no host began the command in time."""


class HypervisorFailedError(ApiError):
    """502."""


class UnexpectedAnswerError(ApiError):
    """The answer is not one of this API; something else may answer at this address."""


class OperationFailedError(Exception):
    """An operation that was waited for has failed.

    Attributes:
        operation: The operation, with its error.
    """

    def __init__(self, operation: OperationView) -> None:
        error = operation.error
        super().__init__(
            f"{operation.verb} of VM {operation.vm_id} failed: "
            + (f"{error.code.value}: {error.message}" if error else "no reason given")
        )
        self.operation = operation


class IdempotencyKeyReusedError(ApiError):
    """422: the idempotency key belongs to another request."""


class RequestInProgressError(ConflictError):
    """409: the first request with this idempotency key is not answered yet."""


_KINDS: Mapping[str, type[ApiError]] = {
    ErrorCode.BAD_REQUEST: BadRequestError,
    ErrorCode.UNAUTHENTICATED: UnauthenticatedError,
    ErrorCode.FORBIDDEN: ForbiddenError,
    ErrorCode.NOT_FOUND: NotFoundError,
    ErrorCode.CONFLICT: ConflictError,
    ErrorCode.PRECONDITION_FAILED: PreconditionFailedError,
    ErrorCode.ILLEGAL_TRANSITION: IllegalTransitionError,
    ErrorCode.PAYLOAD_TOO_LARGE: PayloadTooLargeError,
    ErrorCode.UNKNOWN_IMAGE: UnknownImageError,
    ErrorCode.UNKNOWN_PRICE_PLAN: UnknownPricePlanError,
    ErrorCode.RATE_LIMITED: RateLimitedError,
    ErrorCode.UNAVAILABLE: UnavailableError,
    ErrorCode.NO_CAPACITY: NoCapacityError,
    ErrorCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    ErrorCode.HYPERVISOR_FAILED: HypervisorFailedError,
    ErrorCode.IDEMPOTENCY_KEY_REUSED: IdempotencyKeyReusedError,
    ErrorCode.REQUEST_IN_PROGRESS: RequestInProgressError,
}


def error_of(problem: Problem, status: int, retry_after_s: float | None = None) -> ApiError:
    """The error class that stands for a problem's code; plain ApiError for codes of later APIs."""
    return _KINDS.get(problem.code, ApiError)(problem, status, retry_after_s)


_ENDS: Mapping[str, tuple[type[ApiError], int]] = {
    "unauthenticated": (UnauthenticatedError, 401),
    "not_found": (NotFoundError, 404),
}


def ended(notice: StreamNotice) -> ApiError:
    """Why a stream has ended for good, as the error that a request would have got."""
    kind, status = _ENDS.get(notice.code, (ApiError, 0))
    problem = Problem(
        type=f"urn:decisec:problem:{notice.code}",
        title="The stream has ended",
        status=status,
        code=notice.code,
        detail=notice.message,
    )
    return kind(problem, status)
