"""Questions about VMs, asked of this host on `vm.ask.<host>.<vm>.<what>`, and their answers.

They change nothing and may be lost, so they come as core messages. One that cannot be answered at
once is refused: whoever asks waits two seconds, and asks again.
"""

from __future__ import annotations

import asyncio
from collections import Counter as Tally
from collections.abc import Callable
from typing import Protocol
from uuid import UUID

import msgspec
import structlog
from opentelemetry.trace import SpanKind

from runtime.bus import Bus, Message
from runtime.errors import PoisonError, TransientError
from runtime.telemetry import span
from schemas.codec import decoder, encode
from schemas.consoles import ConsoleQuery, ConsoleReply, decode_console_query
from schemas.errors import ErrorCode, ErrorInfo, InvalidIdError, MalformedMessageError
from schemas.ids import token
from schemas.network_checks import NetworkQuery, NetworkReply, decode_network_query
from schemas.subjects import parse_vm_ask, vm_asks_of
from schemas.units import KIB
from schemas.vms import VmState
from vm_agent.consoles import Consoles
from vm_agent.fleet import Fleet
from vm_agent.network.taps import NetworkError
from vm_agent.network_checks import NetworkChecks
from vm_agent.refusals import Door, Refusals
from vm_agent.scrutiny import Claims, Reason, check_size
from vm_agent.telemetry import Telemetry

_log = structlog.get_logger("decisec.questions")

Query = ConsoleQuery | NetworkQuery
_DECODERS: dict[str, Callable[[bytes], Query]] = {
    "console": decode_console_query,
    "network": decode_network_query,
}
_MAX_OPEN = {"console": (64, 16), "network": (4, 1)}
"""How many of a kind are answered at the same time: of all VMs, of one VM."""

_MAX_TAKEN = 512
"""Questions that are looked at; further ones are refused unread."""

_UNANSWERED = {
    "console": "The console cannot be read.",
    "network": "The VM's network cannot be looked at.",
}
_MAX_BYTES = 4 * KIB
_NOBODY = Claims()


class Answerer(Protocol):
    """Who answers; `Answers` does."""

    async def to(self, message: Message) -> bytes:
        """The encoded answer, errors included."""

    def refused(self, message: Message, reason: Reason) -> bytes:
        """The encoded refusal of a message that is not looked at."""


class Questions(Protocol):
    """Where questions come from."""

    async def run(self, answers: Answerer) -> None:
        """Have each question answered, several at the same time, until cancelled."""


class NatsQuestions:
    """All that this host is asked on the bus."""

    def __init__(self, bus: Bus, host_id: str) -> None:
        self._bus = bus
        self._subject = vm_asks_of(host_id)
        self._taken = 0

    async def run(self, answers: Answerer) -> None:
        """Have each question answered, several at the same time, until cancelled."""
        async with asyncio.TaskGroup() as group:

            async def take(message: Message) -> None:
                if not message.reply:
                    answers.refused(message, Reason.NO_REPLY)
                elif self._taken >= _MAX_TAKEN:
                    await self._send(message, answers.refused(message, Reason.TOO_MANY))
                else:
                    self._taken += 1
                    group.create_task(self._answer(message, answers), name="question")

            subscription = await self._bus.subscribe(self._subject, take)
            try:
                await asyncio.Event().wait()
            finally:
                if self._bus.connected:
                    await subscription.unsubscribe()

    async def _answer(self, message: Message, answers: Answerer) -> None:
        try:
            with span(
                "process vm.ask.{host}.{vm}.{what}", kind=SpanKind.SERVER, parent=message.headers
            ):
                await self._send(message, await answers.to(message))
        except Exception:  # noqa: BLE001 - a defect in one answer must not end the agent
            _log.exception("question.failed", subject=message.subject)
        finally:
            self._taken -= 1

    async def _send(self, message: Message, answer: bytes) -> None:
        try:
            await self._bus.publish(message.reply, answer)
        except TransientError as error:
            _log.warning("answer.lost", subject=message.subject, error=str(error))


class Answers:
    """Answers questions, errors included. A VM of another customer is one that is not here.

    Args:
        host_id: This host.
        fleet: Its VMs.
        consoles: What they print.
        checks: Whether they can be reached.
        refusals: Told of what is refused.
        telemetry: Counts what is answered.
    """

    def __init__(
        self,
        host_id: str,
        fleet: Fleet,
        consoles: Consoles,
        checks: NetworkChecks,
        refusals: Refusals,
        telemetry: Telemetry,
    ) -> None:
        self._host_id = host_id
        self._fleet = fleet
        self._consoles = consoles
        self._checks = checks
        self._refusals = refusals
        self._telemetry = telemetry
        self._open: Tally[tuple[str, UUID]] = Tally()

    async def to(self, message: Message) -> bytes:
        """The encoded answer, a reply of what was asked; or a refusal, which is one of any."""
        try:
            what, query = self._read(message)
        except (MalformedMessageError, PoisonError) as error:
            claims = _claims(message)
            reason = Reason(error.reason)
            self._refusals.note(Door.QUESTION, reason, claims, message.subject, str(error))
            return _reply(ErrorCode.BAD_REQUEST, str(error))
        reason_why = self._refusal(what, query)
        if reason_why is not None:
            claims = Claims(customer_id=query.customer_id, vm_id=query.vm_id, verb=what)
            self._refusals.note(Door.QUESTION, reason_why, claims, message.subject, "")
            if reason_why is Reason.TOO_MANY:
                return _too_many()
            return _reply(ErrorCode.NOT_FOUND, "There is no such VM.")
        self._open[what, query.vm_id] += 1
        try:
            answer = await self._answer(query)
        except (OSError, NetworkError) as error:
            self._telemetry.questions.add(1, {"outcome": "failed"})
            _log.warning("question.not_answered", subject=message.subject, error=str(error))
            return _reply(ErrorCode.INTERNAL, _UNANSWERED[what])
        finally:
            self._open[what, query.vm_id] -= 1
            if not self._open[what, query.vm_id]:
                del self._open[what, query.vm_id]
        self._telemetry.questions.add(1, {"outcome": "answered"})
        return answer

    def refused(self, message: Message, reason: Reason) -> bytes:
        """The encoded refusal of a message that is not looked at."""
        self._refusals.note(Door.QUESTION, reason, _NOBODY, message.subject, "")
        return _too_many()

    def _read(self, message: Message) -> tuple[str, Query]:
        address = parse_vm_ask(message.subject)
        if address.what not in _DECODERS:
            raise PoisonError(Reason.BAD_SUBJECT, f"nobody answers {address.what!r} here")
        check_size(message.data, _MAX_BYTES)
        query = _DECODERS[address.what](message.data)
        if self._host_id != address.host_id:
            raise PoisonError(Reason.WRONG_HOST, f"the question is for host {address.host_id}")
        if query.vm_id != address.vm_id:
            raise PoisonError(Reason.SUBJECT_MISMATCH, "the question is not as its subject")
        return address.what, query

    def _refusal(self, what: str, query: Query) -> Reason | None:
        vm = self._fleet.get(query.vm_id)
        if vm is not None and vm.record.customer_id != query.customer_id:
            return Reason.FOREIGN_VM
        if vm is None or vm.record.state is VmState.DELETED:
            return Reason.NO_SUCH_VM
        most, most_of_one = _MAX_OPEN[what]
        open_ = sum(count for (kind, _), count in self._open.items() if kind == what)
        if open_ >= most or self._open[what, query.vm_id] >= most_of_one:
            return Reason.TOO_MANY
        return None

    async def _answer(self, query: Query) -> bytes:
        if isinstance(query, ConsoleQuery):
            return encode(ConsoleReply(chunk=await self._consoles.read(query)))
        vm = self._fleet.get(query.vm_id)
        if vm is None:
            return _reply(ErrorCode.NOT_FOUND, "There is no such VM.")
        return encode(NetworkReply(check=await self._checks.of(vm.record)))


def _claims(message: Message) -> Claims:
    """Who it says to be from; the rest of what cannot be read is of no use to anybody."""
    try:
        found = _decode_asker(message.data) if len(message.data) <= _MAX_BYTES else _Asker()
        return Claims(customer_id=token(found.customer_id)) if found.customer_id else _NOBODY
    except (MalformedMessageError, InvalidIdError):
        return _NOBODY


class _Refused(msgspec.Struct, frozen=True):
    """Any reply with nothing but an error."""

    error: ErrorInfo


class _Asker(msgspec.Struct, frozen=True):
    customer_id: str = ""


_decode_asker: Callable[[bytes], _Asker] = decoder(_Asker)


def _too_many() -> bytes:
    return _reply(ErrorCode.RATE_LIMITED, "Too many ask this at the same time; try again.")


def _reply(code: ErrorCode, message: str) -> bytes:
    return encode(_Refused(error=ErrorInfo(code=code, message=message)))
