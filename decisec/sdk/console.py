"""How a console is followed: where to go on, how long to wait, when it is over. No I/O."""

from __future__ import annotations

from decisec.sdk.errors import ApiError, NotFoundError, RateLimitedError, UnavailableError
from schemas.consoles import ConsoleChunk

POLL_S = 0.5
_PATIENCE_S = 30.0
_PASSING = (RateLimitedError, UnavailableError)


class Following:
    """One console that is read along.

    Args:
        offset: Where it begins.
        poll_s: Between two looks at a console that prints nothing.

    Attributes:
        pause_s: How long to wait now.
        over: The VM is deleted.
    """

    def __init__(self, offset: int, poll_s: float = POLL_S) -> None:
        self.offset = offset
        self.pause_s = 0.0
        self.over = False
        self._poll_s = poll_s
        self._seen = False
        self._failing_since_s: float | None = None

    def took(self, chunk: ConsoleChunk) -> bool:
        """Go on behind a chunk; whether there is anything in it."""
        self.offset = chunk.next_offset
        self.pause_s = self._poll_s if chunk.end else 0.0
        self._seen = True
        self._failing_since_s = None
        return bool(chunk.data or chunk.lost_bytes)

    def failed(self, error: Exception, now_s: float) -> None:
        """Wait for what passes, take a VM that is gone for the end, raise anything else.

        Args:
            error: What the API or the connection to it raised.
            now_s: Monotonic time.
        """
        if isinstance(error, NotFoundError) and self._seen:
            self.over = True
            self.pause_s = 0.0
            return
        if self._failing_since_s is None:
            self._failing_since_s = now_s
        if not self._passes(error) or now_s - self._failing_since_s > _PATIENCE_S:
            raise error
        wanted_s = error.retry_after_s if isinstance(error, ApiError) else None
        self.pause_s = max(self._poll_s, wanted_s or 0.0)

    def _passes(self, error: Exception) -> bool:
        # Whoever has not read anything yet wants to know at once that it does not work.
        return self._seen and (isinstance(error, _PASSING) or not isinstance(error, ApiError))
