"""The Python SDK: `Client` and `AsyncClient` with the same methods, and the errors they raise.

docs/sdk.md shows how it is used. Its examples, and those in docstrings, are run by the tests.
"""

from decisec.sdk.asynchronous import AsyncClient
from decisec.sdk.calls import WhoAmI
from decisec.sdk.errors import (
    ApiError,
    BadRequestError,
    ConfigurationError,
    ConflictError,
    DeadlineExceededError,
    ForbiddenError,
    HypervisorFailedError,
    IdempotencyKeyReusedError,
    IllegalTransitionError,
    NoCapacityError,
    NotFoundError,
    OperationFailedError,
    PayloadTooLargeError,
    PreconditionFailedError,
    RateLimitedError,
    RequestInProgressError,
    UnauthenticatedError,
    UnavailableError,
    UnexpectedAnswerError,
    UnknownImageError,
    UnknownPricePlanError,
)
from decisec.sdk.feeds import EventsLostError, FollowedEvent
from decisec.sdk.synchronous import Client

__all__ = [
    "ApiError",
    "AsyncClient",
    "BadRequestError",
    "Client",
    "ConfigurationError",
    "ConflictError",
    "DeadlineExceededError",
    "EventsLostError",
    "FollowedEvent",
    "ForbiddenError",
    "HypervisorFailedError",
    "IdempotencyKeyReusedError",
    "IllegalTransitionError",
    "NoCapacityError",
    "NotFoundError",
    "OperationFailedError",
    "PayloadTooLargeError",
    "PreconditionFailedError",
    "RateLimitedError",
    "RequestInProgressError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnexpectedAnswerError",
    "UnknownImageError",
    "UnknownPricePlanError",
    "WhoAmI",
]
