"""Ctrl-C as two events: the first asks for an orderly stop, the second for a quick one."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from decisec.dev.race import race

EXIT_INTERRUPTED = 130

T = TypeVar("T")


class Interrupts:
    """What the user asked for so far."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()

    def interrupt(self) -> None:
        """Take one Ctrl-C or SIGTERM."""
        (self.hurry if self.stop.is_set() else self.stop).set()

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM for the length of the block."""
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGINT, signal.SIGTERM)
        for number in numbers:
            loop.add_signal_handler(number, self.interrupt)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    async def run(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Run `work`; an interrupt cancels it and waits until it has cleaned up.

        Returns:
            What `work` returned; None if it was interrupted.
        """
        return await race(work, self.stop.wait(), name="work")
