"""Writes that somebody else is faster with."""

from __future__ import annotations

import pytest

from gateway import contention
from gateway.errors import RefusedError
from runtime.buckets import RevisionConflictError
from schemas.errors import ErrorCode


async def test_it_is_tried_until_nobody_is_faster() -> None:
    """What comes of the last attempt counts."""
    attempts = 0

    async def attempt() -> int:
        nonlocal attempts
        attempts += 1
        if attempts < 4:
            raise RevisionConflictError("somebody was faster")
        return attempts

    assert await contention.written(attempt, "this thing") == 4


async def test_whoever_is_never_first_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a time to come again, and what it is about."""
    monkeypatch.setattr(contention, "_WITHIN_S", 0.05)

    async def attempt() -> None:
        raise RevisionConflictError("somebody was faster")

    with pytest.raises(RefusedError, match="Others change this thing all the time") as refused:
        await contention.written(attempt, "this thing")
    assert refused.value.code is ErrorCode.UNAVAILABLE
    assert refused.value.retry_after_s


async def test_what_an_attempt_refuses_is_not_tried_again() -> None:
    """Only a lost race is."""
    attempts = 0

    async def attempt() -> None:
        nonlocal attempts
        attempts += 1
        raise RefusedError(ErrorCode.NOT_FOUND, "There is none.")

    with pytest.raises(RefusedError, match="none"):
        await contention.written(attempt, "this thing")
    assert attempts == 1
