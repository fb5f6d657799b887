"""Commands from the bus: checked, queued per VM, carried out, reported, and only then acked.

A command is acknowledged once its result stands in `operations` and its events are stored. Until
then a redelivery finds the work begun or finished, never undone by being done twice. What is no
command for this host, or not what its id stands for, is refused: told, and never delivered again.
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
from schemas.commands import Command, CreateVm, digest_of
from schemas.errors import MalformedMessageError
from schemas.hosts import Operation
from vm_agent.lifecycle import Lifecycle
from vm_agent.refusals import Door, Refusals
from vm_agent.reporter import Desk, Reporter, Spawn
from vm_agent.results import failure_of, operation_of, refused
from vm_agent.scrutiny import Claims, Reason, claims_in, is_same, read_command
from vm_agent.telemetry import Telemetry

_log = structlog.get_logger("decisec.intake")

ACK_WAIT_S = 10.0
_SET_ASIDE_AT_ONCE = 32
"""Messages that are no commands; further ones wait, and with them what came behind."""

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

    @property
    def attempts(self) -> int:
        """How often it was delivered, this time included."""

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


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    message: Message
    command: Command
    digest: str


class _ReusedError(Exception):
    """The command's id stands for another one."""


class Intake:
    """Takes commands and sees them through.

    Args:
        host_id: This host; commands for another one are refused as malformed.
        inbox: Deliveries.
        lifecycle: Carries commands out.
        desk: Knows results of commands that no record holds any more.
        reporter: Writes results, after everything else there is to say about the VM.
        refusals: Told of what is refused.
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
        refusals: Refusals,
        telemetry: Telemetry,
        spawn: Spawn,
    ) -> None:
        self._host_id = host_id
        self._inbox = inbox
        self._lifecycle = lifecycle
        self._desk = desk
        self._reporter = reporter
        self._refusals = refusals
        self._telemetry = telemetry
        self._spawn = spawn
        self._queues: dict[UUID, deque[_Job]] = {}
        self._open: dict[int, Message] = {}
        self._at_work: dict[UUID, _Job] = {}
        self._setting_aside = asyncio.Semaphore(_SET_ASIDE_AT_ONCE)
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
        self._open[id(message)] = message
        self._idle.clear()
        try:
            command = read_command(self._host_id, message.subject, message.data)
        except (MalformedMessageError, PoisonError) as error:
            await self._setting_aside.acquire()
            self._spawn(self._set_aside(message, Reason(error.reason), str(error)), "set-aside")
            return
        job = _Job(message, command, digest_of(command))
        self._at_work.setdefault(command.command_id, job)
        queue = self._queues.get(command.vm_id)
        if queue is None:
            queue = self._queues[command.vm_id] = deque()
            self._spawn(self._work_off(command.vm_id, queue), f"commands-{command.vm_id}")
        queue.append(job)

    def _close(self, message: Message) -> None:
        del self._open[id(message)]
        if not self._open:
            self._idle.set()

    async def _set_aside(self, message: Message, reason: Reason, detail: str) -> None:
        """Refuse what is no command for this host."""
        try:
            claims = claims_in(self._host_id, message.subject, message.data)
            self._refusals.note(Door.COMMAND, reason, claims, message.subject, detail)
            failure = failure_of(self._host_id, claims, reason)
            if failure is not None and claims.command_id not in self._at_work:
                async for attempt in forever("refusal"):
                    with attempt:
                        await self._desk.refuse(failure)
            await self._term(message)
            self._close(message)
        finally:
            self._setting_aside.release()

    async def _work_off(self, vm_id: UUID, queue: deque[_Job]) -> None:
        while queue:
            job = queue[0]
            await self._handle(job)
            queue.popleft()
            if self._at_work.get(job.command.command_id) is job:
                del self._at_work[job.command.command_id]
            self._close(job.message)
        del self._queues[vm_id]

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
            try:
                await self._answer(job)
            except _ReusedError as error:
                # What stands under the id is another command's answer, so it stays.
                self._note(job, Reason.ID_REUSED, str(error))
                await self._term(job.message)
                return
            if await self._ack(job.message):
                await self._lifecycle.answered(command)

    async def _answer(self, job: _Job) -> None:
        """See to it that a command's result stands; it was found, or comes of it now.

        Raises:
            _ReusedError: The id is another command's.
        """
        command = job.command
        done = self._lifecycle.result_of(command)
        if done is not None:
            _check(done.digest, job)
            await self._reporter.report(operation_of(command, done, job.digest)).wait()
            self._repeated(job)
            return
        if await self._answered(job):
            self._repeated(job)
            return
        objection = self._lifecycle.objection(command, job.digest)
        if objection is not None:
            await self._reporter.report(
                operation_of(command, refused(command, objection), job.digest)
            ).wait()
            self._note(job, objection.reason, objection.error.message)
            return
        done = await self._lifecycle.execute(command, job.digest)
        outcome = done.error.code if done.error else "succeeded"
        await self._reporter.report(operation_of(command, done, job.digest)).wait()
        self._telemetry.commands.add(1, {"verb": command.verb, "outcome": outcome})
        _log.info("command.finished", outcome=outcome, state=done.state)

    def _repeated(self, job: _Job) -> None:
        """A result was there. One that was lost on its way to us is no matter of the audit."""
        if job.message.attempts > 1:
            self._telemetry.commands_redelivered.add(1)
            _log.info("command.redelivered")
        else:
            self._note(job, Reason.REPEATED, "it has its result already")

    def _note(self, job: _Job, reason: Reason, detail: str) -> None:
        claims = Claims.of(job.command)
        self._refusals.note(Door.COMMAND, reason, claims, job.message.subject, detail)

    async def _answered(self, job: _Job) -> bool:
        """Whether a result stands on the bus. Waits while NATS is away.

        From then on a create that has none is this host's: a gateway that finds it pending for too
        long gives it to another one.

        Raises:
            _ReusedError: Something else stands there, or is at work.
        """
        command = job.command
        # Before the look: if it ends meanwhile, its result stands there.
        first = self._at_work.get(command.command_id)
        operation = await self._standing(command, begin=False)
        if operation is not None and _finished(operation, job):
            return True
        if first is not None and first.command.vm_id != command.vm_id:
            raise _ReusedError(f"it is at work for VM {first.command.vm_id}")
        if operation is None:
            return False
        if isinstance(command, CreateVm):
            operation = await self._standing(command, begin=True)
            return operation is not None and _finished(operation, job)
        return False

    async def _standing(self, command: Command, *, begin: bool) -> Operation | None:
        look = self._desk.begin if begin else self._desk.operation
        async for attempt in forever("operation"):
            with attempt:
                try:
                    return await look(command.command_id)
                except PoisonError as error:
                    _log.error("operation.damaged", error=str(error))
        return None

    async def _term(self, message: Message) -> None:
        try:
            await message.term()
        except TransientError as failure:
            # Delivered again, it is refused again.
            _log.warning("command.not_terminated", error=str(failure))

    async def _ack(self, message: Message) -> bool:
        try:
            await message.ack_sync()
        except TransientError as error:
            # Delivered again, it finds its result and is acked then.
            _log.warning("command.not_acked", error=str(error))
            return False
        return True


def _finished(operation: Operation, job: _Job) -> bool:
    """Whether this is the command's result; _ReusedError if it is about another one."""
    if not is_same(operation, job.command):
        raise _ReusedError(f"it is another command's: {operation.verb} VM {operation.vm_id}")
    if operation.finished:
        _check(operation.digest, job)
    return operation.finished


def _check(digest: str, job: _Job) -> None:
    if digest and digest != job.digest:
        raise _ReusedError("another command of this VM was answered under it")
