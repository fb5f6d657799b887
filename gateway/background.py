"""Work that outlives the request it comes from, and the end of a gateway's taking requests."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from gateway.errors import RETRY_AFTER_S, RefusedError
from schemas.errors import ErrorCode

T = TypeVar("T")


def shutting_down() -> RefusedError:
    """This gateway ends; another one, or the next, does what is asked."""
    return RefusedError(
        ErrorCode.UNAVAILABLE,
        "This gateway is shutting down. Nothing was changed; try again.",
        retry_after_s=RETRY_AFTER_S,
        # Whoever tries again shall find another one.
        headers={"Connection": "close"},
    )


class Background:
    """A task group for what requests leave behind.

    Args:
        group: Holds the tasks. It may end while requests are still there: then it takes no more.

    Attributes:
        ending: Done once new requests are refused.
    """

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self.ending: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def closed(self) -> bool:
        """Whether new requests are refused."""
        return self.ending.done()

    def close(self) -> None:
        """Refuse new requests from now on; those that are here finish, and wait no longer."""
        if not self.ending.done():
            self.ending.set_result(None)

    def require_open(self) -> None:
        """Go on only if new requests are taken.

        Raises:
            RefusedError: UNAVAILABLE.
        """
        if self.closed:
            raise shutting_down()

    def spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Do something apart from the request.

        Raises:
            RefusedError: UNAVAILABLE. The group has ended; the work was not begun.
        """
        try:
            return self._group.create_task(work, name=name)
        except RuntimeError:
            # What a group says that is finished or shutting down.
            work.close()
            raise shutting_down() from None
