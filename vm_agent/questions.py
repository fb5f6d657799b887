"""Questions about VMs, asked of this host on `vm.ask.<host>.<vm>.<what>`, and their answers.

They change nothing and may be lost, so they come as core messages. One that cannot be answered at
once is refused: whoever asks waits two seconds, and asks again.
"""

from __future__ import annotations

import asyncio
from collections import Counter as Tally
from collections.abc import Awaitable, Callable
from typing import Protocol
from uuid import UUID

import structlog
from opentelemetry.trace import SpanKind

from runtime.bus import Bus, Message
from runtime.errors import TransientError
from runtime.telemetry import span
from schemas.codec import encode
from schemas.consoles import ConsoleChunk, ConsoleQuery, ConsoleReply, decode_console_query
from schemas.errors import ErrorCode, ErrorInfo, MalformedMessageError
from schemas.subjects import parse_vm_ask, vm_asks_of
from schemas.vms import VmState
from vm_agent.consoles import Consoles
from vm_agent.fleet import Fleet

_log = structlog.get_logger("decisec.questions")

_MAX_OPEN = 64
_MAX_OPEN_PER_VM = 16


class Questions(Protocol):
    """Where questions come from."""

    async def run(self, answer: Callable[[Message], Awaitable[bytes]]) -> None:
        """Have each question answered, several at the same time, until cancelled."""


class NatsQuestions:
    """All that this host is asked on the bus."""

    def __init__(self, bus: Bus, host_id: str) -> None:
        self._bus = bus
        self._subject = vm_asks_of(host_id)

    async def run(self, answer: Callable[[Message], Awaitable[bytes]]) -> None:
        """Have each question answered, several at the same time, until cancelled."""
        async with asyncio.TaskGroup() as group:

            async def take(message: Message) -> None:
                if message.reply:
                    group.create_task(self._answer(message, answer), name="question")

            subscription = await self._bus.subscribe(self._subject, take)
            try:
                await asyncio.Event().wait()
            finally:
                if self._bus.connected:
                    await subscription.unsubscribe()

    async def _answer(
        self, message: Message, answer: Callable[[Message], Awaitable[bytes]]
    ) -> None:
        try:
            with span(
                "process vm.ask.{host}.{vm}.{what}", kind=SpanKind.SERVER, parent=message.headers
            ):
                await self._bus.publish(message.reply, await answer(message))
        except TransientError as error:
            _log.warning("answer.lost", subject=message.subject, error=str(error))
        except Exception:  # noqa: BLE001 - a defect in one answer must not end the agent
            _log.exception("question.failed", subject=message.subject)


class Answers:
    """Answers questions, errors included. A VM of another customer is one that is not here.

    Args:
        host_id: This host.
        fleet: Its VMs.
        consoles: What they print.
    """

    def __init__(self, host_id: str, fleet: Fleet, consoles: Consoles) -> None:
        self._host_id = host_id
        self._fleet = fleet
        self._consoles = consoles
        self._open: Tally[UUID] = Tally()

    async def to(self, message: Message) -> bytes:
        """The encoded answer: a `ConsoleReply`, whatever was asked."""
        try:
            query = self._read(message)
            refusal = self._refusal(query)
            if refusal is not None:
                return encode(ConsoleReply(error=refusal))
            return encode(ConsoleReply(chunk=await self._console(query)))
        except MalformedMessageError as error:
            _log.error("question.malformed", subject=message.subject, error=str(error))
            return encode(ConsoleReply(error=_error(ErrorCode.BAD_REQUEST, str(error))))
        except OSError as error:
            _log.warning("console.not_read", subject=message.subject, error=str(error))
            return encode(
                ConsoleReply(error=_error(ErrorCode.INTERNAL, "The console cannot be read."))
            )

    def _read(self, message: Message) -> ConsoleQuery:
        address = parse_vm_ask(message.subject)
        if address.what != "console":
            raise MalformedMessageError("bad_subject", f"nobody answers {address.what!r} here")
        query = decode_console_query(message.data)
        if (self._host_id, query.vm_id) != (address.host_id, address.vm_id):
            raise MalformedMessageError("subject_mismatch", "the question is not as its subject")
        return query

    def _refusal(self, query: ConsoleQuery) -> ErrorInfo | None:
        vm = self._fleet.get(query.vm_id)
        if (
            vm is None
            or vm.record.customer_id != query.customer_id
            or vm.record.state is VmState.DELETED
        ):
            return _error(ErrorCode.NOT_FOUND, "There is no such VM.")
        if self._open.total() >= _MAX_OPEN or self._open[query.vm_id] >= _MAX_OPEN_PER_VM:
            return _error(
                ErrorCode.RATE_LIMITED, "Too many read consoles at the same time; try again."
            )
        return None

    async def _console(self, query: ConsoleQuery) -> ConsoleChunk:
        self._open[query.vm_id] += 1
        try:
            return await self._consoles.read(query)
        finally:
            self._open[query.vm_id] -= 1
            if not self._open[query.vm_id]:
                del self._open[query.vm_id]


def _error(code: ErrorCode, message: str) -> ErrorInfo:
    return ErrorInfo(code=code, message=message)
