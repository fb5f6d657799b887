"""What decoding and id checks raise, and the error a message can carry."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class MalformedMessageError(ValueError):
    """The bytes are no message of the expected kind. The only error that decoding raises.

    Attributes:
        reason: Constant snake_case word, usable as a metric label and a subject token.
        detail: A sentence for people; names the field where one is known.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class InvalidIdError(ValueError):
    """A token that may not stand in a subject, a key or a file name."""


class ErrorCode(StrEnum):
    """Stable codes of everything that a command, a request or a query can fail with."""

    BAD_REQUEST = "bad_request"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    PRECONDITION_FAILED = "precondition_failed"
    ILLEGAL_TRANSITION = "illegal_transition"
    PAYLOAD_TOO_LARGE = "payload_too_large"
    UNSUPPORTED = "unsupported"
    NO_CAPACITY = "no_capacity"
    UNKNOWN_IMAGE = "unknown_image"
    UNKNOWN_PRICE_PLAN = "unknown_price_plan"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"
    HYPERVISOR_FAILED = "hypervisor_failed"
    INTERNAL = "internal"
    IDEMPOTENCY_KEY_REUSED = "idempotency_key_reused"
    REQUEST_IN_PROGRESS = "request_in_progress"


class ErrorInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Why something failed: a stable code, and a sentence that says what to do."""

    code: ErrorCode
    message: str
