"""Operations: who waits for which, what is under way, and what a caller is shown."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import structlog

from gateway.history import History
from runtime.buckets import Bucket, RevisionConflictError
from runtime.bus import Bus, Message
from runtime.clock import utc_now
from runtime.errors import PoisonError, TransientError
from schemas.api import OperationView
from schemas.errors import ErrorCode, ErrorInfo
from schemas.hosts import Operation, OperationStatus, decode_operation
from schemas.subjects import OPERATIONS

_log = structlog.get_logger("decisec.operations")

_POLL_S = 0.5
_PREFIX = f"$KV.{OPERATIONS}."
_LINGER = timedelta(seconds=10)

Listener = Callable[[Operation], None]


def shown(operation: Operation, now: datetime) -> Operation:
    """The operation as a caller sees it: one that nobody began in time has failed."""
    if operation.status is OperationStatus.PENDING and now > operation.deadline:
        return failed(
            operation,
            ErrorInfo(
                code=ErrorCode.DEADLINE_EXCEEDED,
                message="The host did not begin before the deadline.",
            ),
            operation.deadline,
        )
    return operation


def failed(operation: Operation, error: ErrorInfo, at: datetime) -> Operation:
    """The operation with a bad end."""
    return msgspec.structs.replace(
        operation, status=OperationStatus.FAILED, error=error, finished_at=at
    )


def view(operation: Operation, now: datetime, operation_id: UUID | None = None) -> OperationView:
    """The operation as a body; `operation_id` is the name that the caller knows it by."""
    seen = shown(operation, now)
    return OperationView(
        operation_id=operation_id or seen.operation_id,
        vm_id=seen.vm_id,
        verb=seen.verb,
        status=seen.status,
        state=seen.state,
        error=seen.error,
        created_at=seen.created_at,
        deadline=seen.deadline,
        finished_at=seen.finished_at,
        snapshot_id=seen.snapshot_id,
    )


class Operations:
    """The bucket `operations`, followed as it changes.

    Changes come by a plain subscription to the bucket's subjects, because only those from now
    on matter and the bucket keeps a week of them. Whoever waits also asks now and then, so
    that a lost message costs half a second and not the answer.
    """

    def __init__(self, bus: Bus, listener: Listener | None = None) -> None:
        self.bucket = Bucket(bus, OPERATIONS, decode_operation)
        self.history = History()
        self._bus = bus
        self._listeners = [listener] if listener else []
        self._waiters: dict[UUID, set[asyncio.Future[Operation]]] = {}
        self._in_flight: dict[UUID, dict[UUID, Operation]] = {}
        self._following = asyncio.Event()

    def listen(self, listener: Listener) -> None:
        """Call `listener` with every operation that is written."""
        self._listeners.append(listener)

    async def run(self) -> None:
        """Follow the bucket until cancelled."""
        subscription = await self._bus.subscribe(f"{_PREFIX}>", self._on_message)
        self._following.set()
        try:
            await asyncio.Event().wait()
        finally:
            if self._bus.connected:
                await subscription.unsubscribe()

    async def remember(self) -> None:
        """Take what the bucket keeps of late into the history."""
        await self.following()
        await self.history.read(self.bucket)

    async def following(self) -> None:
        """Return once `run` has subscribed."""
        await self._following.wait()

    async def create(self, operation: Operation) -> int | None:
        """Write a new operation; returns its revision, or None if it stands already."""
        self.note(operation)
        try:
            return await self.bucket.create(str(operation.operation_id), operation)
        except RevisionConflictError:
            return None

    async def fail(self, operation: Operation, error: ErrorInfo, revision: int) -> bool:
        """End an operation that no agent has touched; False if one has.

        An agent that meets the command later finds this result and does nothing.
        """
        ended = failed(operation, error, utc_now())
        try:
            await self.bucket.update(str(operation.operation_id), ended, revision)
        except RevisionConflictError:
            return False
        self.note(ended)
        return True

    async def get(self, operation_id: UUID) -> Operation | None:
        """Read one."""
        entry = await self.bucket.get(str(operation_id))
        return entry.value if entry else None

    async def finished(
        self,
        operation_id: UUID,
        timeout_s: float,
        ending: asyncio.Future[None] | None = None,
    ) -> Operation | None:
        """Wait for a result; None if there is none in time, or `ending` is done first.

        Raises:
            PoisonError: The entry is malformed.
        """
        future: asyncio.Future[Operation] = asyncio.get_running_loop().create_future()
        waiters = self._waiters.setdefault(operation_id, set())
        waiters.add(future)
        try:
            async with asyncio.timeout(max(0.0, timeout_s)):
                while True:
                    awaited: set[asyncio.Future[Any]] = {future}
                    if ending is not None:
                        awaited.add(ending)
                    await asyncio.wait(
                        awaited, timeout=_POLL_S, return_when=asyncio.FIRST_COMPLETED
                    )
                    if future.done():
                        return future.result()
                    if ending is not None and ending.done():
                        return None
                    # Away for the moment: the next round asks again.
                    with suppress(TransientError):
                        operation = await self.get(operation_id)
                        if operation is not None and operation.finished:
                            self.note(operation)
                            return operation
        except TimeoutError:
            return None
        finally:
            waiters.discard(future)
            if not waiters:
                self._waiters.pop(operation_id, None)

    def verbs_in_flight(self, vm_id: UUID, now: datetime) -> list[str]:
        """Verbs that this VM's agent has yet to finish, oldest first."""
        open_ones = self._in_flight.get(vm_id)
        if not open_ones:
            return []
        for operation in list(open_ones.values()):
            if now > operation.deadline + _LINGER:
                self._settle(operation)
        verbs = [operation.verb for operation in self._in_flight.get(vm_id, {}).values()]
        # A boot that belongs to a create is written first, and done second.
        return sorted(verbs, key=lambda verb: verb != "create")

    def note(self, operation: Operation) -> None:
        """Take a state of an operation, whoever wrote it."""
        if operation.finished:
            self._settle(operation)
            for future in self._waiters.get(operation.operation_id, ()):
                if not future.done():
                    future.set_result(operation)
        else:
            self._in_flight.setdefault(operation.vm_id, {})[operation.operation_id] = operation
        self.history.take(operation)
        for listener in self._listeners:
            listener(operation)

    def note_unwritten(self, operation: Operation) -> None:
        """Take back a `create` that did not reach the server."""
        self._settle(operation)
        self.history.forget(operation.operation_id)

    def _settle(self, operation: Operation) -> None:
        open_ones = self._in_flight.get(operation.vm_id)
        if open_ones is not None:
            open_ones.pop(operation.operation_id, None)
            if not open_ones:
                del self._in_flight[operation.vm_id]

    async def _on_message(self, message: Message) -> None:
        if message.headers.get("KV-Operation"):
            return
        key = message.subject.removeprefix(_PREFIX)
        try:
            self.note(self.bucket.decode(key, message.data))
        except PoisonError as error:
            _log.error("operation.refused", key=key, error=str(error))
