"""Named retry policies. Adapters retry once, with one of these, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

import structlog
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_delay,
    stop_never,
    wait_random_exponential,
)

from runtime.errors import TransientError

_log = structlog.get_logger("decisec.retry")


def _report(policy: str) -> Callable[[RetryCallState], None]:
    def before_sleep(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        _log.warning(
            "attempt.failed",
            policy=policy,
            attempt=state.attempt_number,
            next_in_s=round(state.upcoming_sleep, 3),
            error=str(error),
        )

    return before_sleep


def publishing(limit_s: float = 30.0) -> AsyncRetrying:
    """For a publish that must arrive: 50 ms to 2 s apart, at most `limit_s` in all."""
    return _awaited("publishing", limit_s)


def reading(limit_s: float = 30.0) -> AsyncRetrying:
    """For a read that somebody waits for: 50 ms to 2 s apart, at most `limit_s` in all."""
    return _awaited("reading", limit_s)


def _awaited(policy: str, limit_s: float) -> AsyncRetrying:
    return AsyncRetrying(
        retry=retry_if_exception_type(TransientError),
        wait=wait_random_exponential(multiplier=0.05, max=2.0),
        stop=stop_after_delay(limit_s),
        before_sleep=_report(policy),
        reraise=True,
    )


def forever(name: str, max_wait_s: float = 5.0) -> AsyncRetrying:
    """For work that must be done and may wait: retried until it succeeds or is cancelled."""
    return AsyncRetrying(
        retry=retry_if_exception_type(TransientError),
        wait=wait_random_exponential(multiplier=0.1, max=max_wait_s),
        stop=stop_never,
        before_sleep=_report(name),
        reraise=True,
    )
