"""Many at a time or one alone: VMs come and go together, but not while all are compared."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class Turnstile:
    """Whoever wants to be alone waits for those inside, and lets nobody in meanwhile."""

    def __init__(self) -> None:
        self._inside = 0
        self._alone = False
        self._waiting: set[asyncio.Future[None]] = set()

    @asynccontextmanager
    async def together(self) -> AsyncIterator[None]:
        """Be inside with others."""
        await self._until(lambda: not self._alone)
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            self._tell()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Be inside, and nobody else."""
        await self._until(lambda: not self._alone)
        self._alone = True
        try:
            await self._until(lambda: self._inside == 0)
            yield
        finally:
            self._alone = False
            self._tell()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.add(turn)
            try:
                await turn
            finally:
                self._waiting.discard(turn)

    def _tell(self) -> None:
        for turn in self._waiting:
            if not turn.done():
                turn.set_result(None)
