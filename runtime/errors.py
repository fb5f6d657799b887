"""Four classes of error, named by what the loop that meets one must do.

Adapters translate library errors into these at their edge, once, with `from exc`.
"""

from __future__ import annotations


class DecisecError(Exception):
    """Base of the errors below; never raised itself."""


class TransientError(DecisecError):
    """Try again later: a connection is away, a time limit passed.

    Attributes:
        retry_after_s: When a further try makes sense, if known.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class OverloadedError(TransientError):
    """Slow down: the other side is there and refuses more for now."""


class PoisonError(DecisecError):
    """Set this one aside and go on: no retry will make it good.

    Attributes:
        reason: Constant snake_case word, usable as a metric label.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class FatalError(DecisecError):
    """Stop: going on would do harm. The message tells the operator what to change."""


class SettingsError(FatalError):
    """A setting is missing or wrong; names the variable or key."""
