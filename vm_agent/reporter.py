"""What the agent tells the world about a VM: statuses, events and results, in their order.

Reports of one VM are written one after the other, each until NATS has it; those of different
VMs do not wait for each other, and whoever reports does not wait unless it wants to.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Protocol
from uuid import UUID

import msgspec
import structlog

from runtime.buckets import Bucket, RevisionConflictError
from runtime.bus import Bus
from runtime.errors import PoisonError, TransientError
from runtime.publisher import Publisher
from runtime.retry import forever
from schemas.codec import encode
from schemas.events import (
    NetworkAbuseSuspected,
    VmEvent,
    VmPaused,
    VmResumed,
    VmSnapshotted,
    VmStarted,
    VmStopped,
    event_type,
)
from schemas.hosts import Operation, OperationStatus, decode_operation
from schemas.subjects import OPERATIONS, VM_STATUS, status_key, vm_event
from schemas.vms import VmStatus, decode_vm_status

_log = structlog.get_logger("decisec.reporter")

Report = VmStatus | VmEvent | Operation
Spawn = Callable[[Coroutine[Any, Any, None], str], object]
"""Runs a coroutine as a named task of the agent's task group."""


def event_msg_id(event: VmEvent) -> str:
    """The `Nats-Msg-Id` of an event: the same fact has the same id, however often it is sent.

    A VM is created and deleted once, an incarnation starts and stops once; what can happen
    again within an incarnation is told apart by its command.
    """
    match event:
        case VmStarted() | VmStopped():
            which = str(event.incarnation)
        case VmSnapshotted():
            which = str(event.snapshot_id)
        case VmPaused() | VmResumed():
            which = str(event.command_id or event.event_id)
        case NetworkAbuseSuspected():
            which = str(event.event_id)
        case _:
            which = ""
    return f"{event.vm_id}:{event_type(event)}:{which}"


class Desk(Protocol):
    """Where reports go. Every call raises TransientError while NATS is away."""

    async def send(self, report: Report) -> None:
        """Write one report."""

    async def operation(self, command_id: UUID) -> Operation | None:
        """What stands about a command."""

    async def begin(self, command_id: UUID) -> Operation | None:
        """The same, after a pending one was marked as running: nobody withdraws it then."""

    async def refuse(self, failure: Operation) -> None:
        """Write the bad end of what is no command, unless something else stands under its id."""


class NatsDesk:
    """Reports to KV buckets and to the stream of events."""

    def __init__(self, bus: Bus) -> None:
        self._statuses = Bucket(bus, VM_STATUS, decode_vm_status)
        self._operations = Bucket(bus, OPERATIONS, decode_operation)
        self._publisher = Publisher(bus)

    async def send(self, report: Report) -> None:
        """Write one report. TransientError while NATS is away."""
        match report:
            case VmStatus():
                key = status_key(report.host_id, report.customer_id, report.vm_id)
                await self._statuses.put(key, report)
            case Operation():
                await self._operations.put(str(report.operation_id), report)
            case _:
                await self._publisher.publish(
                    vm_event(report), encode(report), msg_id=event_msg_id(report)
                )

    async def operation(self, command_id: UUID) -> Operation | None:
        """What stands about a command. TransientError while NATS is away."""
        entry = await self._operations.get(str(command_id))
        return entry.value if entry else None

    async def begin(self, command_id: UUID) -> Operation | None:
        """The same, after a pending one was marked as running. TransientError if it changes."""
        entry = await self._operations.get(str(command_id))
        if entry is None or entry.value.status is not OperationStatus.PENDING:
            return entry.value if entry else None
        running = msgspec.structs.replace(entry.value, status=OperationStatus.RUNNING)
        try:
            await self._operations.update(str(command_id), running, entry.revision)
        except RevisionConflictError as error:
            raise TransientError(f"{error}; it is looked at again") from error
        return running

    async def refuse(self, failure: Operation) -> None:
        """Write a bad end where nothing stands, or where this is waited for."""
        key = str(failure.operation_id)
        try:
            await self._operations.create(key, failure)
        except RevisionConflictError:
            await self._end(key, failure)

    async def _end(self, key: str, failure: Operation) -> None:
        try:
            entry = await self._operations.get(key)
            if entry is None or not is_waited_for(entry.value, failure):
                return
            ended = msgspec.structs.replace(
                entry.value,
                status=failure.status,
                error=failure.error,
                finished_at=failure.finished_at,
            )
            await self._operations.update(key, ended, entry.revision)
        except (PoisonError, RevisionConflictError) as error:
            _log.warning("refusal.not_told", operation=key, error=str(error))


def is_waited_for(standing: Operation, failure: Operation) -> bool:
    """Whether what stands is pending, and about the VM that the failure is about."""
    return (
        standing.status is OperationStatus.PENDING
        and standing.customer_id == failure.customer_id
        and standing.vm_id == failure.vm_id
        and standing.host_id == failure.host_id
    )


class Reporter:
    """One ordered queue of reports per VM.

    Args:
        desk: Where reports go.
        spawn: Starts the task that works off one VM's queue.
        on_sent: Called with each event that has been stored.
    """

    def __init__(
        self,
        desk: Desk,
        spawn: Spawn,
        on_sent: Callable[[VmEvent], Coroutine[Any, Any, None]],
    ) -> None:
        self._desk = desk
        self._spawn = spawn
        self._on_sent = on_sent
        self._queues: dict[UUID, deque[tuple[Report, asyncio.Event]]] = {}

    @property
    def waiting(self) -> int:
        """Reports that are not written yet."""
        return sum(map(len, self._queues.values()))

    def report(self, report: Report) -> asyncio.Event:
        """Queue a report; the event is set once it and all before it are written."""
        written = asyncio.Event()
        queue = self._queues.get(report.vm_id)
        if queue is None:
            queue = self._queues[report.vm_id] = deque()
            self._spawn(self._work_off(report.vm_id, queue), f"report-{report.vm_id}")
        queue.append((report, written))
        return written

    async def _work_off(self, vm_id: UUID, queue: deque[tuple[Report, asyncio.Event]]) -> None:
        while queue:
            report, written = queue[0]
            async for attempt in forever("report", max_wait_s=1.0):
                with attempt:
                    await self._desk.send(report)
            if not isinstance(report, (VmStatus, Operation)):
                await self._on_sent(report)
            queue.popleft()
            written.set()
        del self._queues[vm_id]
