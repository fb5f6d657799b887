"""How it becomes known that a command has come to its end: told by the bus, or asked of the API."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple
from uuid import UUID

import httpx

from decisec.sdk import ApiError, AsyncClient
from runtime.buckets import Bucket
from runtime.bus import Bus, Message
from runtime.errors import PoisonError, TransientError
from schemas.errors import ErrorCode, MalformedMessageError
from schemas.hosts import Operation, OperationStatus, decode_operation
from schemas.subjects import OPERATIONS
from tests.load.flood.commands.doors import Door, HttpDoor, RefusedError, UnansweredError

_FIRST_LOOK_S = 0.02
_LOOK_S = 0.25
_ASK_S = 1.0


class End(NamedTuple):
    """The end of a command: when it became known (monotonic), and the code of its failure."""

    at_s: float
    failure: str = ""


class Endings(ABC):
    """Waits for the ends of commands.

    Attributes:
        how: For the report.
    """

    how: str

    @abstractmethod
    async def end(self, door: Door, vm_id: UUID, operation_id: UUID, within_s: float) -> End | None:
        """The end of a command; None if there is none in time."""


class AskedOfTheApi(Endings):
    """Looks at the operation, soon at first, then four times a second: so exact are latencies."""

    how = "polling"

    async def end(self, door: Door, vm_id: UUID, operation_id: UUID, within_s: float) -> End | None:
        if not isinstance(door, HttpDoor):
            raise TypeError("only the HTTP API tells of operations")
        pause_s = _FIRST_LOOK_S
        try:
            async with asyncio.timeout(within_s):
                while True:
                    if end := await self._look(door.client, operation_id):
                        return end
                    await asyncio.sleep(pause_s)
                    pause_s = min(_LOOK_S, pause_s * 1.5)
        except TimeoutError:
            return None

    async def _look(self, client: AsyncClient, operation_id: UUID) -> End | None:
        try:
            seen = await client.get_operation(operation_id)
        except (ApiError, httpx.TransportError):
            return None  # the next look may tell
        if seen.status is OperationStatus.SUCCEEDED:
            return End(time.monotonic())
        if seen.status is OperationStatus.FAILED:
            return End(time.monotonic(), _code(seen.error.code if seen.error else None))
        return None


class ToldByTheBus(Endings):
    """Hears of every operation when its result is written. Made by `listening`."""

    how = "bus"

    def __init__(self, bus: Bus, customers: frozenset[str]) -> None:
        self._bucket = Bucket(bus, OPERATIONS, decode_operation)
        self._customers = customers
        self._ended: dict[UUID, End] = {}
        self._waiting: dict[UUID, asyncio.Event] = {}

    async def hear(self, message: Message) -> None:
        """Handler of the bucket's subjects."""
        with suppress(MalformedMessageError):  # a deletion has no content
            self._note(decode_operation(message.data))

    def _note(self, operation: Operation) -> None:
        if operation.finished and operation.customer_id in self._customers:
            failure = operation.error.code if operation.error else None
            failed = operation.status is OperationStatus.FAILED
            self._ended.setdefault(
                operation.operation_id, End(time.monotonic(), _code(failure) if failed else "")
            )
            if waiting := self._waiting.get(operation.operation_id):
                waiting.set()

    async def end(self, door: Door, vm_id: UUID, operation_id: UUID, within_s: float) -> End | None:
        waiting = self._waiting[operation_id] = asyncio.Event()
        try:
            async with asyncio.timeout(within_s):
                while operation_id not in self._ended:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_ASK_S):
                            await waiting.wait()
                    if operation_id not in self._ended:
                        await self._ask(operation_id)
                end = self._ended.pop(operation_id)
                if end.failure == ErrorCode.NO_CAPACITY:
                    return await self._placed_elsewhere(door, vm_id, end)
                return end
        except TimeoutError:
            return None
        finally:
            del self._waiting[operation_id]

    async def _ask(self, operation_id: UUID) -> None:
        """A message that was lost costs a second and not the answer."""
        with suppress(TransientError, PoisonError):
            if entry := await self._bucket.get(str(operation_id)):
                self._note(entry.value)

    async def _placed_elsewhere(self, door: Door, vm_id: UUID, end: End) -> End:
        """A host that had no room after all is not the end: the gateway tries the others."""
        while True:
            with suppress(RefusedError, UnansweredError):
                view = await door.look(vm_id)
                if view is None:
                    return end
                if view.incarnation or view.driver:
                    return End(time.monotonic())
            await asyncio.sleep(_LOOK_S)


@asynccontextmanager
async def listening(bus: Bus, customers: frozenset[str]) -> AsyncIterator[ToldByTheBus]:
    """Hears of all operations of some customers while the block lasts."""
    endings = ToldByTheBus(bus, customers)
    subscription = await bus.subscribe(f"$KV.{OPERATIONS}.>", endings.hear)
    await bus.client.flush()
    try:
        yield endings
    finally:
        if bus.connected:
            await subscription.unsubscribe()


def _code(code: ErrorCode | None) -> str:
    return code.value if code else ErrorCode.INTERNAL.value
