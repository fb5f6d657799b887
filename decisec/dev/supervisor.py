"""Starts children in order, waits until each is ready, notices deaths, stops in order.

Nothing is restarted: a child that dies ends the stack, with its name, exit code and log tail.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar, cast

from decisec.dev.child import Child, ChildSpec
from decisec.dev.errors import ChildDiedError, StackError
from decisec.dev.race import race

T = TypeVar("T")

Report = Callable[[str], None]
Readiness = Callable[[], Awaitable[str]]
"""Answers with the reason why the child is not ready yet; empty once it is."""

_POLL_S = 0.05


class Supervisor:
    """The children of one stack.

    Args:
        report: Takes one line of progress at a time.
        hurry: Set when an orderly stop shall become a quick one.
    """

    def __init__(self, report: Report, hurry: asyncio.Event) -> None:
        self._report = report
        self._hurry = hurry
        self.children: dict[str, Child] = {}

    def spawn(self, spec: ChildSpec) -> Child:
        """Start a child; it is supervised from now on.

        Raises:
            StackError: Its program cannot be started.
        """
        child = Child(spec)
        self.children[spec.name] = child
        return child

    async def ready(self, name: str, check: Readiness, *, within_s: float = 30.0) -> None:
        """Wait until a child is ready.

        Raises:
            ChildDiedError: It, or another child, died meanwhile.
            StackError: It did not become ready in time.
        """
        await self.guard(self._until_ready(self.children[name], check, within_s))

    async def guard(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` as long as all children live.

        Raises:
            ChildDiedError: One died. It comes before what `work` raises on account of that.
        """
        if not self.children:
            return await work
        try:
            result = await race(work, self._death(), name="guarded")
        except Exception as error:
            if (died := self._dead()) and not isinstance(error, ChildDiedError):
                raise died from error
            raise
        return cast("T", result)

    async def _until_ready(self, child: Child, ready: Readiness, within_s: float) -> None:
        why = "no answer"
        try:
            async with asyncio.timeout(within_s):
                while why := await ready():
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            raise StackError(
                f"{child.name} is not ready after {within_s:g} s: {why}; its log is "
                f"{child.spec.log}"
            ) from error

    async def run(self, spec: ChildSpec, *, within_s: float = 120.0) -> tuple[int, str]:
        """Run a tool to its end; on cancellation it is ended too.

        Returns:
            Exit code and the last line of its output.

        Raises:
            StackError: It did not end in time.
        """
        child = Child(spec)
        child.stopping = True
        try:
            async with asyncio.timeout(within_s):
                code = await child.exited()
        except TimeoutError as error:
            raise StackError(
                f"{spec.name} did not end within {within_s:g} s; its log is {spec.log}"
            ) from error
        finally:
            await child.stop(self._hurry, self._report)
        return code, " ".join(child.log_tail(1)).strip()

    async def _death(self) -> None:
        async with asyncio.TaskGroup() as group:
            tasks = {
                group.create_task(child.exited(), name=f"{child.name}-exit")
                for child in self.children.values()
            }
            _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in pending:
                task.cancel()
        if died := self._dead():
            raise died

    def _dead(self) -> ChildDiedError | None:
        for child in self.children.values():
            if child.exit_code is not None:
                return ChildDiedError(
                    child.name, child.exit_code, child.log_tail(), str(child.spec.log)
                )
        return None

    async def stop(self, names: Sequence[str]) -> None:
        """Stop the named children one after the other; those not running are skipped."""
        for name in names:
            child = self.children.pop(name, None)
            if child is not None:
                await child.stop(self._hurry, self._report)
