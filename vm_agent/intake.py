"""Commands from the bus: checked, queued per VM, carried out, reported, and only then acked.

A command is acknowledged once its result stands in `operations` and its events are stored. Until
then a redelivery finds the work begun or finished, never undone by being done twice.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

import structlog
from opentelemetry.trace import SpanKind

from runtime.errors import PoisonError, TransientError
from runtime.retry import forever
from runtime.telemetry import span
from schemas.commands import Command, CreateVm, decode_command
from schemas.errors import ErrorCode, MalformedMessageError
from schemas.hosts import Operation, OperationStatus
from schemas.subjects import parse_vm_command
from vm_agent.lifecycle import Lifecycle
from vm_agent.reporter import Desk, Reporter, Spawn
from vm_agent.store import Done
from vm_agent.telemetry import Telemetry

_log = structlog.get_logger("decisec.intake")

ACK_WAIT_S = 10.0
_KEEPALIVE_S = 3.0


class Message(Protocol):
    """One delivery of a command; `runtime.consumer.Delivery` is one."""

    @property
    def subject(self) -> str:
        """Where it was published."""

    @property
    def data(self) -> bytes:
        """The command."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Trace context among others."""

    async def ack_sync(self) -> None:
        """Done, confirmed by the server."""

    async def nak(self) -> None:
        """Deliver it again."""

    async def in_progress(self) -> None:
        """Still at work."""

    async def term(self) -> None:
        """Never deliver it again."""


class Inbox(Protocol):
    """Where deliveries come from."""

    def batches(self, stop: asyncio.Event) -> AsyncIterator[list[Message]]:
        """Batches until `stop` is set."""

    async def waits_for(self, vm_id: UUID) -> bool:
        """See `vm_agent.forgetting.Waiting`."""


@dataclass(frozen=True, slots=True)
class _Job:
    message: Message
    command: Command


class Intake:
    """Takes commands and sees them through.

    Args:
        host_id: This host; commands for another one are refused as malformed.
        inbox: Deliveries.
        lifecycle: Carries commands out.
        desk: Knows results of commands that no record holds any more.
        reporter: Writes results, after everything else there is to say about the VM.
        telemetry: Counts commands.
        spawn: Starts a named task in the agent's group.
    """

    def __init__(
        self,
        host_id: str,
        inbox: Inbox,
        lifecycle: Lifecycle,
        desk: Desk,
        reporter: Reporter,
        telemetry: Telemetry,
        spawn: Spawn,
    ) -> None:
        self._host_id = host_id
        self._inbox = inbox
        self._lifecycle = lifecycle
        self._desk = desk
        self._reporter = reporter
        self._telemetry = telemetry
        self._spawn = spawn
        self._queues: dict[UUID, deque[_Job]] = {}
        self._open: dict[int, Message] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def open(self) -> int:
        """Commands taken and not answered yet."""
        return len(self._open)

    async def run(self, stop: asyncio.Event) -> None:
        """Take commands until `stop` is set."""
        async for batch in self._inbox.batches(stop):
            for message in batch:
                await self._take(message)

    async def keep_alive(self) -> None:
        """Tell NATS from time to time that open commands are still at work, until cancelled."""
        while True:
            await asyncio.sleep(_KEEPALIVE_S)
            for message in list(self._open.values()):
                try:
                    await message.in_progress()
                except TransientError as error:
                    _log.warning("keepalive.failed", error=str(error), open=self.open)
                    break

    async def finished(self) -> None:
        """Return once no command is open."""
        await self._idle.wait()

    async def give_back(self) -> int:
        """Let NATS deliver what is still open again, to the next run; how many that were."""
        messages = list(self._open.values())
        for message in messages:
            try:
                await message.nak()
            except TransientError as error:
                # It comes again all the same, once its ack wait is over.
                _log.warning("command.not_given_back", error=str(error))
        return len(messages)

    async def _take(self, message: Message) -> None:
        try:
            command = self._read(message)
        except (MalformedMessageError, PoisonError) as error:
            _log.error("command.malformed", subject=message.subject, error=str(error))
            self._telemetry.commands_malformed.add(1, {"reason": error.reason})
            try:
                await message.term()
            except TransientError as failure:
                # Delivered again, it is refused again.
                _log.warning("command.not_terminated", error=str(failure))
            return
        self._open[id(message)] = message
        self._idle.clear()
        queue = self._queues.get(command.vm_id)
        if queue is None:
            queue = self._queues[command.vm_id] = deque()
            self._spawn(self._work_off(command.vm_id, queue), f"commands-{command.vm_id}")
        queue.append(_Job(message, command))

    def _read(self, message: Message) -> Command:
        address = parse_vm_command(message.subject)
        command = decode_command(message.data)
        said = (command.host_id, command.vm_id, command.verb)
        if said != tuple(address):
            raise PoisonError("subject_mismatch", f"the message is for {said}, not as its subject")
        if command.host_id != self._host_id:
            raise PoisonError("wrong_host", f"the command is for host {command.host_id}")
        return command

    async def _work_off(self, vm_id: UUID, queue: deque[_Job]) -> None:
        while queue:
            job = queue[0]
            await self._handle(job)
            queue.popleft()
            del self._open[id(job.message)]
        del self._queues[vm_id]
        if not self._open:
            self._idle.set()

    async def _handle(self, job: _Job) -> None:
        command = job.command
        with (
            span(
                "process vm.cmd.{host}.{vm}.{verb}",
                kind=SpanKind.CONSUMER,
                parent=job.message.headers,
                attributes={"decisec.verb": command.verb, "decisec.vm_id": str(command.vm_id)},
            ),
            structlog.contextvars.bound_contextvars(
                command_id=str(command.command_id), vm_id=str(command.vm_id), verb=command.verb
            ),
        ):
            done = self._lifecycle.result_of(command)
            if done is None and await self._answered(command):
                _log.info("command.repeated")
            else:
                done = done or await self._lifecycle.execute(command)
                outcome = done.error.code if done.error else "succeeded"
                await self._reporter.report(_operation(command, done)).wait()
                self._telemetry.commands.add(1, {"verb": command.verb, "outcome": outcome})
                _log.info("command.finished", outcome=outcome, state=done.state)
            if await self._ack(job.message):
                await self._lifecycle.answered(command)

    async def _answered(self, command: Command) -> bool:
        """Whether a result stands on the bus. Waits while NATS is away.

        From then on a create that has none is this host's: a gateway that finds it pending for too
        long gives it to another one.
        """
        look = self._desk.begin if isinstance(command, CreateVm) else self._desk.operation
        async for attempt in forever("operation"):
            with attempt:
                try:
                    operation = await look(command.command_id)
                except PoisonError as error:
                    _log.error("operation.damaged", error=str(error))
                    return False
        return operation is not None and operation.finished

    async def _ack(self, message: Message) -> bool:
        try:
            await message.ack_sync()
        except TransientError as error:
            # Delivered again, it finds its result and is acked then.
            _log.warning("command.not_acked", error=str(error))
            return False
        return True


def _operation(command: Command, done: Done) -> Operation:
    failed = done.error is not None
    # A VM of somebody else and no VM look the same from outside.
    hidden = done.error is not None and done.error.code is ErrorCode.NOT_FOUND
    return Operation(
        operation_id=command.command_id,
        customer_id=command.customer_id,
        vm_id=command.vm_id,
        host_id=command.host_id,
        verb=command.verb,
        status=OperationStatus.FAILED if failed else OperationStatus.SUCCEEDED,
        state=None if hidden else done.state,
        error=done.error,
        requested_by=command.requested_by,
        created_at=command.issued_at,
        deadline=command.deadline,
        finished_at=done.finished_at,
        placed=command.placed if isinstance(command, CreateVm) else "",
        snapshot_id=getattr(command, "snapshot_id", None),
    )
